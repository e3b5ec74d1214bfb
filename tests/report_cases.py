"""Videos and detections for the tests of the report, and a parser that fails on unbalanced HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from metric_cases import found

from pipeline.annotations import Action, Video

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Counts elements and fails on one that is closed without being open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, name, attributes):
        self.seen.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, f"</{name}> closes nothing"


def parsed(text: str) -> Balance:
    page = Balance()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


GROUND_TRUTH = {
    "good": Video("good", "validation", 30.0, (Action(0, 10, "jump"), Action(15, 25, "run"))),
    "bad": Video("bad", "validation", 400.0, (Action(100, 200, "jump"),)),
    "half": Video("half", "validation", None, (Action(0, 10, "run"), Action(20, 30, "run"))),
    "empty": Video("empty", "validation", 12.0, ()),
}
RESULTS = {
    "good": [found(0, 10, "jump", 0.9), found(15, 25, "run", 0.8), found(0, 9, "jump", 0.1)],
    "bad": [found(300, 390, "jump", 0.7)],
    "half": [found(0, 10, "run", 0.85)],
    "empty": [],
}
