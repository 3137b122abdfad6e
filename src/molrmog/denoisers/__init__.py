"""The denoiser protocol: anything that estimates the clean point behind a noised one."""
