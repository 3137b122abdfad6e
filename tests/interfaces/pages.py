"""What every page of a report must be: well formed, and alone."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags that are opened and not closed, sources of pictures, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_page(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)  # it stands alone
    return " ".join(" ".join(page.text).split())
