"""The demo's searches on a tiny CLIP, against a ranking of all pairs by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpt.data.captions import open_captions
from vpt.methods import METHODS
from vpt.promptset import PromptSet
from vpt.search.encoder import Encoder
from vpt.search.index import Index
from vpt.tasks.learner import build_method
from vpt.towers.backbone import Backbone
from vpt.workflow.compare import Candidate
from vpt.workflow.demo import demo
from vpt.workflow.demo_search import FROZEN, HUNT, LISTED, SHOWN, Hunt, Hunter, search, verdict
from vpt.workflow.report import Searches

RECIPE = {"lr": (1e-2,), "epochs": 1}
WORDS = Hunt("scenes:40", Candidate("coop", "text rows", {"length": 2}, RECIPE), batch_size=24, queries=3)
BOTH = replace(WORDS, candidate=Candidate("ivlp", "both rows", {}, RECIPE))
Done = tuple[Path, list[str], Searches]


@pytest.fixture(scope="module")
def done(tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out, told = tmp_path_factory.mktemp("demo"), []
    return out, told, search(WORDS, tiny_clip, out, "cpu", told.append)


def ranked(encoder: Encoder, folder: Path, texts: list[str]) -> list[list[str]]:
    """Names of all pictures of a folder for each text, best first."""
    files = sorted(folder.glob("*.png"))
    scores = encoder.texts(texts) @ encoder.images(files).T
    return [[files[i].name for i in np.argsort(-row, kind="stable")] for row in scores]


def test_the_pictures_are_those_of_the_test_split_with_their_captions(done: Done) -> None:
    source, folder = open_captions("scenes:40"), done[0] / "search" / "pictures"
    items = source.splits()["test"]
    files = sorted(folder.glob("*.png"))
    assert len(files) == len(items) == 12
    for file, item in zip(files, items, strict=True):
        assert np.array_equal(Image.open(file), source.read(item))
        assert tuple(file.with_suffix(".txt").read_text().splitlines()) == item.captions


def test_the_table_says_what_a_ranking_of_all_pairs_says(done: Done, tiny_clip: Backbone) -> None:
    out, _, found = done
    folder = out / "search" / "pictures"
    captions = {f.with_suffix(".png").name: f.read_text().splitlines() for f in folder.glob("*.txt")}
    texts = sorted({text for own in captions.values() for text in own})
    (file,) = out.glob("search/*/seed1/prompts.safetensors")
    for line, prompts in zip(found.table, (None, PromptSet.load(file)), strict=True):
        order = ranked(Encoder(tiny_clip, prompts), folder, texts)
        first = np.mean([text in captions[names[0]] for text, names in zip(texts, order, strict=True)])
        assert line[1] == f"{100 * first:.1f}"
    assert [line[0] for line in found.table] == [FROZEN, "text rows"]
    assert len(found.header) == len(found.table[0]) == len(found.table[1])


def test_searches_show_the_nearest_and_mark_the_right_ones(done: Done, tiny_clip: Backbone) -> None:
    out, _, found = done
    folder = out / "search" / "pictures"
    queries = [asked.query for asked in found.asked]
    assert len(set(queries)) == 3
    order = ranked(Encoder(tiny_clip), folder, queries)
    for asked, names in zip(found.asked, order, strict=True):
        assert list(asked.found) == [FROZEN, "text rows"]
        hits = asked.found[FROZEN]
        assert [h.png for h in hits] == [(folder / name).read_bytes() for name in names[:SHOWN]]
        own = [(folder / name).with_suffix(".txt").read_text().splitlines() for name in names[:SHOWN]]
        assert [h.right for h in hits] == [asked.query in captions for captions in own]
    firsts = sum(asked.found[FROZEN][0].right for asked in found.asked)
    assert any(f"a right picture comes first for {firsts} ({FROZEN}) and " in said for said in found.findings)


def test_contact_sheets_lie_where_the_page_points(done: Done) -> None:
    out, _, found = done
    for path, asked in zip(found.links, ("before", "after"), strict=True):
        assert path == f"search/{asked}.html"
        html = (out / path).read_text()
        assert html.count("<figure>") == 3 * LISTED
        assert all(a.query in html for a in found.asked)


def test_text_rows_share_an_index_and_image_rows_have_their_own(
    done: Done, tiny_clip: Backbone, tmp_path: Path
) -> None:
    out, _, found = done
    assert [p.name for p in out.glob("search/index-*")] == ["index-frozen"]
    assert any("one index serves" in said for said in found.findings)
    both = search(BOTH, tiny_clip, tmp_path, "cpu", lambda _: None)
    (file,) = tmp_path.glob("search/*/seed1/prompts.safetensors")
    rows = PromptSet.load(file).written("image")
    assert {p.name for p in tmp_path.glob("search/index-*")} == {"index-frozen", f"index-{rows}"}
    assert Index.open(tmp_path / "search" / f"index-{rows}").manifest.encoder["rows"] == rows
    assert any("embedded again, into an index" in said for said in both.findings)


def test_a_second_search_trains_nothing_and_says_the_same(
    done: Done, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first, found = done
    assert first[0].startswith("search: text rows: recall@1 ")
    monkeypatch.setattr("vpt.workflow.runs.fit", None)
    told: list[str] = []
    assert search(WORDS, tiny_clip, out, "cpu", told.append) == found
    assert told == first[1:] == ["search: indexing 12 test pictures and searching them"]


def test_the_demo_puts_it_on_its_page(done: Done, backbone: Backbone, tiny_clip: Backbone) -> None:
    out, _, found = done
    chapters, searches, _ = demo(
        out, subjects=(), hunts=[WORDS], lessons=(), backbone=backbone, clip=tiny_clip, device="cpu"
    )
    assert (chapters, searches) == ([], [found])
    html = (out / "index.html").read_text()
    for cell in (*found.table[1], *found.links, *(a.query for a in found.asked)):
        assert cell in html
    assert html.count('class="right"') == sum(
        h.right for a in found.asked for hits in a.found.values() for h in hits
    )


@pytest.mark.parametrize(
    ("before", "after", "count", "said"),
    [
        (0.5, 0.7, 100, "a gain of 20.0 points"),  # a standard error is 5 points
        (0.7, 0.5, 100, "a loss of 20.0 points"),
        (0.5, 0.59, 100, "unclear (+9.0 points)"),
        (0.5, 0.41, 100, "unclear (−9.0 points)"),
        (0.5, 0.59, 400, "a gain of 9.0 points"),
        (1.0, 1.0, 100, "unclear (+0.0 points)"),
    ],
)
def test_a_change_is_called_what_it_is(before: float, after: float, count: int, said: str) -> None:
    assert verdict(before, after, count) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([0.0, 0.05], "The rows bring no clear gain here, and no clear loss."),
        ([0.0, 0.3], "The rows pay here."),
        ([-0.3, 0.0], "The rows do harm here."),
        ([-0.3, 0.3], "The rows gain one way and lose the other."),
    ],
)
def test_the_first_finding_sums_up(
    done: Done, tiny_clip: Backbone, changes: list[float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ("t2i_r1", "i2t_r1")
    numbers = {"mean_recall": 0.5, "t2i_r5": 0.5}
    hunter = Hunter(WORDS, tiny_clip, done[0], "cpu", print)
    after = dict(zip(ways, [0.5 + c for c in changes], strict=True)) | numbers
    before = {"test": dict.fromkeys(ways, 0.5) | numbers}
    counts = {**hunter.run.protocol, "counts": {"train": 24, "val": 4, "test": 100}}
    run = replace(hunter.run, metrics=after, before=before, protocol=counts)
    monkeypatch.setitem(hunter.__dict__, "run", run)
    assert hunter.searches().findings[0] == said


def test_what_the_demo_trains_exists(tiny_clip: Backbone) -> None:
    assert HUNT.candidate.method in METHODS
    build_method(HUNT.candidate.method, tiny_clip, HUNT.candidate.options)
    assert len(open_captions(HUNT.data).splits()["test"]) == 120
