"""The words of the core carry a causal text tower: placeholders, class axes, packed sentences, coupled prompts.

The tower stands here, in a test, as the next family would stand in ``vpt/towers/``: floor 0 knows nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.encode import advance, encode, encode_grid, tap
from vpt.prompt import Context, Prompt, Site
from vpt.tower import Block, Live, Stream, Tower

WIDTH, DEPTH, OUT, LENGTH, WORDS, END = 24, 3, 16, 12, 30, 29
NAMES = [[4], [5, 6], [7, 8, 9], [10, 11]]  # token ids of four class names
SLOT = 1  # the id that holds a place


class ToyBlock(nn.Module):
    """A pre-norm block with an additive mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def attend(self, x: Tensor, h_read: Tensor, h: Tensor, mask: Tensor) -> Tensor:
        """x [B, R, W] are the tokens that go on, h_read their normed states, h all of them, mask [.., R, S]."""
        q = self.qkv(h_read)[..., :WIDTH]
        k, v = self.qkv(h)[..., WIDTH:].chunk(2, -1)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        return self.attend(x, h, h, mask)


class ToyText(nn.Module):
    """CLIP's text tower in small: a fixed causal mask, read at the end token, projected."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = (
            nn.Embedding(WORDS, WIDTH),
            nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.5),
        )
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(DEPTH))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT, bias=False)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -torch.inf).triu(1))

    def forward(self, ids: Tensor, ctx: Sequence[Tensor] = (), at: int = 1) -> Tensor:
        """Features [K, OUT], the library's way; ctx: per layer (first: embedded) rows [n, W] or [K, n, W] at ``at``."""
        x = self.words(ids)

        def put(x: Tensor, rows: Tensor) -> Tensor:
            return torch.cat([x[:, :at], rows.expand(len(x), -1, -1), x[:, at + rows.shape[-2] :]], 1)

        x = put(x, ctx[0]) if ctx else x
        x = x + self.positions[: ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = put(x, ctx[i]) if 0 < i < len(ctx) else x
            x = block(x, self.mask[: ids.shape[1], : ids.shape[1]])
        return self.out(self.norm(x)[torch.arange(len(ids)), ids.argmax(1)])


@dataclass(frozen=True)
class TextStep:
    """A block of the toy as a step; in the last one only the end tokens are worked for."""

    block: ToyBlock
    model: ToyText

    def mask(self, s: Stream) -> Tensor:
        return self.model.mask[: s.x.shape[1], : s.x.shape[1]] if s.mask is None else s.mask

    def __call__(self, s: Stream) -> Stream:
        return replace(s, x=self.block(s.x, self.mask(s)))

    def live(self, s: Stream, live: Live) -> Stream:
        assert not live.rows  # a tower that cannot grow is never asked to
        h, read = self.block.norm1(s.x), live.read.expand(len(s.x), -1)
        some_x, some_h = (t.take_along_dim(read[..., None], 1) for t in (s.x, h))
        mask = self.mask(s).expand(len(s.x), *self.mask(s).shape[-2:]).take_along_dim(read[..., None], 1)
        return replace(s, x=self.block.attend(some_x, some_h, h, mask[:, None]))


def open_text(m: ToyText) -> Tower:
    """Named stages, the library's modules in their order, and what pooling reads: nothing else is needed."""

    def place(s: Stream) -> Stream:
        at = torch.arange(s.x.shape[1])[None] if s.positions is None else s.positions
        return replace(s, x=s.x + m.positions[at])

    def pool(s: Stream) -> Stream:
        ends = s.x.take_along_dim(s.places["end"].expand(len(s.x), -1)[..., None], 1)  # [batch, K, width]
        return replace(s, x=m.out(ends[:, 0] if ends.shape[1] == 1 else ends))

    m.requires_grad_(False).eval()
    return Tower(
        "text",
        m,
        ("input", "embedded", "placed", *map(str, range(DEPTH + 1)), "normed", "pooled"),
        (
            lambda s: replace(s, x=m.words(s.x)),
            place,
            lambda s: s,
            *(TextStep(block, m) for block in m.blocks),
            lambda s: replace(s, x=m.norm(s.x)),
            pool,
        ),
        width=WIDTH,
        out=OUT,
        reads="end",
        grows="normed",  # the causal mask is fixed
    )


@pytest.fixture(scope="module")
def model() -> ToyText:
    torch.manual_seed(5)
    return ToyText()


@pytest.fixture(scope="module")
def text(model: ToyText) -> Tower:
    return open_text(model)


def sentences(before: int = 0, n: int = 3) -> Tensor:
    """Ids [K, LENGTH]: start, ``before`` fixed words, n placeholders, the name, a full stop, the end, padding."""
    rows = [[0, *[20] * before, *[SLOT] * n, *name, 21, END] for name in NAMES]
    return torch.tensor([r + [2] * (LENGTH - len(r)) for r in rows])


def stream(ids: Tensor) -> Stream:
    """What a tokenizer will hand over: ids, and where their placeholders and ends are."""
    held = (ids == SLOT).nonzero()[:, 1].view(len(ids), -1)
    return Stream(ids, places={"<ctx>": held, "end": ids.argmax(1, keepdim=True)})


def packed(ids: Tensor, shared: int) -> Stream:
    """The same sentences side by side in one row: the first ``shared`` tokens once, the others behind them."""
    tokens, positions, owner, ends = (
        [ids[0, :shared]],
        [torch.arange(shared)],
        [torch.full((shared,), -1)],
        [],
    )
    for k, end in enumerate(ids.argmax(1).tolist()):
        tokens.append(ids[k, shared : end + 1])
        positions.append(torch.arange(shared, end + 1))
        owner.append(torch.full((end + 1 - shared,), k))
        ends.append(sum(map(len, tokens)) - 1)
    row, at, of = (torch.cat(parts) for parts in (tokens, positions, owner))
    seen = ((of[:, None] == of) | (of == -1)) & (at[:, None] >= at)
    held = (row == SLOT).nonzero()[:, 0]
    return Stream(
        row[None],
        places={"<ctx>": held[None], "end": torch.tensor([ends])},
        positions=at[None],
        mask=torch.zeros(seen.shape).masked_fill(~seen, -torch.inf),
    )


def ctx(stage: int | str) -> Site:
    return Site("text", "embedded" if stage == 0 else str(stage), "<ctx>")


def learned(layers: int, *shape: int) -> dict[Site, Tensor]:
    return {ctx(i): torch.randn(*shape, WIDTH, requires_grad=True) for i in range(layers)}


def grads(out: Tensor, rows: dict[Site, Tensor]) -> Tensor:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return torch.cat([g.flatten() for g in torch.autograd.grad((out * weight).sum(), list(rows.values()))])


def test_without_rows_the_tower_is_the_library(model: ToyText, text: Tower) -> None:
    assert isinstance(text.steps[3], Block)
    assert torch.equal(encode(text, stream(sentences())), model(sentences()))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("classes", [(), (len(NAMES),)], ids=["shared", "class-specific"])
@pytest.mark.parametrize("before", [0, 2])
def test_rows_at_placeholders(
    model: ToyText, text: Tower, layers: int, classes: tuple[int, ...], before: int, live: bool
) -> None:
    ids, rows = sentences(before), learned(layers, *classes, 3)
    want, out = model(ids, list(rows.values()), 1 + before), encode(text, stream(ids), rows, live=live)
    assert torch.equal(out, want) if not live else torch.allclose(out, want, atol=2e-6)
    assert (want - model(ids)).abs().max() > 1e-2
    wanted, found = grads(want, rows), grads(out, rows)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_packed_sentences_equal_plain_ones(model: ToyText, text: Tower, layers: int) -> None:
    ids, rows = sentences(), learned(layers, 3)
    s = packed(ids, 4)
    assert s.x.numel() < ids.numel() // 2
    out = encode(text, s, rows)
    assert out.shape == (1, len(NAMES), OUT)
    want = model(ids, list(rows.values()))
    assert torch.allclose(out[0], want, atol=5e-6)
    assert torch.allclose(encode(text, s, rows, live=False), out, atol=5e-6)
    assert torch.allclose(grads(out[0], rows), grads(want, rows), atol=2e-5)


def test_packed_rows_stand_behind_the_names_by_their_source(model: ToyText, text: Tower) -> None:
    """Placeholders in each class's own part: one set of rows that goes to K places, or a set for each class."""
    ids = torch.tensor([[0, *name, SLOT, SLOT, 21, END, *[2] * (7 - len(name))] for name in NAMES])
    s, classes = packed(ids, 1), len(NAMES)
    at = (ids == SLOT).nonzero()[:, 1].view(-1, 2)
    for shape, source in (((2,), torch.arange(2).repeat(classes)), ((classes, 2), torch.arange(2 * classes))):
        rows = learned(1, *shape)
        embedded = model.words(ids).scatter(
            1, at[..., None].expand(-1, -1, WIDTH), rows[ctx(0)].expand(classes, -1, -1)
        )
        want = advance(
            text, Stream(embedded, "embedded", places={"end": ids.argmax(1, keepdim=True)}), {}, "pooled"
        ).x
        out = encode(text, replace(s, source={"<ctx>": source[None]}), rows)
        assert torch.allclose(out[0], want, atol=5e-6)
    flat = {ctx(0): rows[ctx(0)].flatten(0, 1)}  # the form that no batch can be mistaken for
    assert torch.equal(encode(text, replace(s, source={"<ctx>": source[None]}), flat), out)


def test_rows_that_depend_on_the_picture_meet_every_class_in_one_packed_pass(
    model: ToyText, text: Tower
) -> None:
    ids, rows = sentences(), learned(2, 5, 3)
    grid = encode_grid(text, packed(ids, 4), rows)[:, 0]  # CoCoOp: 5 pictures, each with every class
    plain = encode_grid(text, stream(ids), rows)
    assert grid.shape == plain.shape == (5, len(NAMES), OUT)
    for i in range(5):
        want = model(ids, [r[i] for r in rows.values()])
        assert torch.allclose(grid[i], want, atol=5e-6)
        assert torch.allclose(plain[i], want, atol=5e-6)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("site", [Site("text", "0", "prefix"), Site("text", "embedded", "suffix")], ids=str)
def test_a_fixed_mask_lets_no_slot_be_opened(text: Tower, site: Site, live: bool) -> None:
    with pytest.raises(ValueError, match=r"no slot can be opened at text/.*fixed mask.*below stage 'normed'"):
        encode(text, stream(sentences()), {site: torch.zeros(2, WIDTH)}, live=live)
    with pytest.raises(ValueError, match="token ids take none: use the stage 'embedded'"):
        encode(text, stream(sentences()), {Site("text", "input", "<ctx>"): torch.zeros(3, WIDTH)})


def test_a_denoiser_reads_a_sequence_that_rows_have_lengthened(model: ToyText, text: Tower) -> None:
    """Learned context: rows join the finished states, and several stages of one pass are read."""
    rows = learned(1, 3) | {Site("text", "normed", "suffix"): torch.randn(2, WIDTH)}
    found = tap(text, stream(sentences()), rows, at=[DEPTH - 1, "normed", "pooled"])
    context = found["normed"].x
    assert context.shape == (len(NAMES), LENGTH + 2, WIDTH)
    assert torch.equal(context[:, -2:], rows[Site("text", "normed", "suffix")].expand(len(NAMES), -1, -1))
    assert torch.allclose(found["pooled"].x, model(sentences(), [rows[ctx(0)]]), atol=2e-6)
    assert found["2"].x.shape == (len(NAMES), LENGTH, WIDTH)


class Coupled(nn.Module):
    """MaPLe in small: the image rows are linear maps of the text rows, layer by layer."""

    def __init__(self, layers: int, image_width: int) -> None:
        super().__init__()
        self.text = Prompt("text", "<ctx>", ["embedded", *range(1, layers)], 3, WIDTH, init=nn.init.normal_)
        self.maps = nn.ModuleList(nn.Linear(WIDTH, image_width) for _ in range(layers))

    def forward(self, context: Context) -> dict[Site, Tensor]:
        text = self.text(context)
        image = [Site("image", s if s != "embedded" else "0", "suffix") for _, s, _ in text]
        return text | {site: m(r) for site, m, r in zip(image, self.maps, text.values(), strict=True)}


def test_a_coupled_prompt_writes_both_towers_and_learns_from_both(
    model: ToyText, text: Tower, tower: Tower, images: Tensor
) -> None:
    method = Coupled(2, tower.width)
    rows = method(Context())
    names, pictures = encode(text, stream(sentences()), rows), encode(tower, images, rows)
    table = method.text.table.rows
    assert torch.allclose(names, model(sentences(), list(table)), atol=2e-6)
    own = {Site("image", str(i), "suffix"): m(table[i]) for i, m in enumerate(method.maps)}
    assert torch.allclose(pictures, encode(tower, images, own, live=False), atol=5e-6)
    for features in (names, pictures):
        assert torch.autograd.grad(features[:, 0].sum(), table, retain_graph=True)[0].abs().min() > 0
    (names[:, :1].sum() + pictures[:, 0].sum()).backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in method.parameters())


def test_rows_may_depend_on_what_another_tower_saw(
    model: ToyText, text: Tower, tower: Tower, images: Tensor
) -> None:
    """CoCoOp: a table shifted by a small net of the image feature, so that rows get a batch axis."""
    table, net = nn.Parameter(torch.randn(3, WIDTH)), nn.Linear(tower.out, WIDTH)
    features = encode(tower, images)  # Context.features of a method that needs "image"
    rows = {ctx(0): table + net(features)[:, None]}
    grid = encode_grid(text, packed(sentences(), 4), rows)[:, 0]
    for i in range(len(images)):
        assert torch.allclose(grid[i], model(sentences(), [table + net(features[i])]), atol=5e-6)
    grid[..., 0].sum().backward()
    assert net.weight.grad.abs().sum() > 0
    assert table.grad.abs().sum() > 0
