"""What a network stands on: laws as they are fitted, read and told, against the laws themselves."""

import pytest
import torch

import molrmog
from molrmog import ConditionalLaw, MLPDenoiser, MoGDenoiser, MoLRMoG, PerExpert
from molrmog.experiments.bases import fitted_base, saved_base


def rows(n=240, dim=8, seed=0):
    """Rows of a law with three subspaces, and the subspace of each."""
    law = MoLRMoG.random(dim, (2, 3, 2), (2, 1, 2), noise=0.1, seed=seed)
    drawn = law.sample(n, torch.Generator().manual_seed(seed))
    return drawn.x, drawn.subspace


def test_the_fitted_base_is_the_law_by_label_told_its_subspace():
    x, expert = rows()
    base = fitted_base(x, expert, latent_dim=3, modes=2)
    law = molrmog.fit(x, labels=expert, latent_dim=3, modes=2, noise="isotropic")
    assert isinstance(base, ConditionalLaw)
    assert torch.equal(base.denoise(x, 0.8, 0.6), law.denoise(x, 0.8, 0.6))
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("learn", ["all", ("mean", "factor")])
def test_a_base_that_is_learned_starts_at_the_same_law(learn):
    x, expert = rows()
    frozen, learned = (fitted_base(x, expert, latent_dim=3, modes=2, learn=chosen) for chosen in ((), learn))
    assert isinstance(learned, PerExpert)
    told = (x, 0.8, 0.6, expert)
    torch.testing.assert_close(learned.denoise(*told), frozen.denoise(*told), rtol=1e-4, atol=1e-5)
    assert any(parameter.requires_grad for parameter in learned.parameters())


def test_an_expert_of_few_rows_gets_what_they_can_hold():
    x, expert = rows()
    few = torch.cat([x[expert != 1], x[expert == 1][:3]])
    owner = torch.cat([expert[expert != 1], torch.tensor([1, 1, 1])])
    law = fitted_base(few, owner, latent_dim=3, modes=4).law
    assert (law.latent_dims, law.modes[1]) == ((3, 2, 3), 1)


def test_a_head_gives_diagonal_noise():
    x, expert = rows()
    assert fitted_base(x, expert, latent_dim=3, modes=1, head=5).law.noise == "diagonal"
    with pytest.raises(ValueError, match="leave out --learn, or --head"):
        fitted_base(x, expert, latent_dim=3, modes=1, head=5, learn="mean")


def test_a_saved_law_is_told_its_experts_only_where_they_are_its_subspaces(tmp_path):
    x, expert = rows()
    law = molrmog.fit(x, labels=expert, latent_dim=3, modes=2, noise="isotropic")
    law.save_pretrained(tmp_path)
    found = saved_base(tmp_path, 8, 3)
    assert type(found) is MoLRMoG
    assert torch.equal(found.denoise(x, 0.8, 0.6), law.denoise(x, 0.8, 0.6))
    assert isinstance(saved_base(tmp_path, 8, 3, by_expert=True), ConditionalLaw)
    assert type(saved_base(tmp_path, 8, 2, by_expert=True)) is MoLRMoG
    assert isinstance(saved_base(tmp_path, 8, 3, by_expert=True, learn="mean"), PerExpert)
    assert isinstance(saved_base(tmp_path, 8, 3, learn="mean"), MoGDenoiser)


def test_a_base_that_does_not_fit_says_so(tmp_path):
    MLPDenoiser(8, width=8, experts=4).save_pretrained(tmp_path)
    for options, message in (
        ({"dim": 7, "experts": 4}, r"over R\^8, and the rows have 7 columns"),
        ({"dim": 8, "experts": 3}, "knows 4 experts, and the rows have 3: pass --experts 4"),
        ({"dim": 8, "experts": 4, "learn": "mean"}, "a MLPDenoiser, which stays as it is"),
    ):
        with pytest.raises(ValueError, match=message):
            saved_base(tmp_path, **options)
    assert not any(parameter.requires_grad for parameter in saved_base(tmp_path, 8, 4).parameters())
    with pytest.raises(FileNotFoundError, match="no model"):
        saved_base(tmp_path / "nowhere", 8, 4)
