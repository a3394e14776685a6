"""Pages as a browser reads them."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}
EVIL = "<script>alert(1)</script>.png"


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and visible text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace("\N{NO-BREAK SPACE}", " "))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def count(self, tag, **attrs):
        return sum(t == tag and all(a.get(k) == v for k, v in attrs.items()) for t, a in self.tags)
