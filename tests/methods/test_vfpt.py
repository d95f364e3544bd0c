"""VFPT against numpy's Fourier transform."""

import numpy as np
import pytest
import torch

from vpt.encode import encode
from vpt.methods.vfpt import VFPT
from vpt.methods.vpt import VPT
from vpt.prompt import Context
from vpt.towers.vit import tiny


@pytest.mark.parametrize(("fourier", "waves"), [(0.0, 0), (0.5, 3), (0.7, 4), (1.0, 7)])
@pytest.mark.parametrize("project", [None, 6])
def test_the_first_rows_are_the_real_part_of_the_transform(
    fourier: float, waves: int, project: int | None
) -> None:
    method = VFPT(tiny(), length=7, fourier=fourier, project=project)
    rows = method(Context())
    assert [site.stage for site in rows] == ["0", "1", "2"]
    for plain, got in zip(
        method.image_prompt.through(method.image_prompt.table()), rows.values(), strict=True
    ):
        plain = plain.detach().double().numpy()
        over_channels = np.fft.fft(plain[:waves], axis=1)
        wave = np.fft.fft(over_channels, axis=0).real if waves else over_channels.real
        np.testing.assert_allclose(got.detach().numpy(), np.concatenate([wave, plain[waves:]]), atol=1e-5)


def test_each_sample_is_transformed_after_its_own_dropout() -> None:
    method = VFPT(tiny(), length=4, fourier=1.0, dropout=0.5)
    torch.manual_seed(3)
    rows = method.train()(Context(2))
    torch.manual_seed(3)
    table = method.image_prompt.table()
    dropped = torch.nn.functional.dropout(table[:, None].expand(-1, 2, -1, -1), 0.5)
    for got, plain in zip(rows.values(), dropped.detach().numpy(), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), np.fft.fft2(plain).real, atol=1e-5)


def test_no_waves_is_vpt_and_waves_learn() -> None:
    image, pictures = tiny(), torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    plain = VPT(image, length=4)
    torch.manual_seed(0)
    same = VFPT(image, length=4, fourier=0.0)
    assert torch.equal(encode(image, pictures, plain(Context())), encode(image, pictures, same(Context())))
    method = VFPT(image, length=4)
    encode(image, pictures, method(Context()))[:, 0].sum().backward()
    assert method.image_prompt.table.rows.grad.abs().amax(-1).amin() > 1e-4


@pytest.mark.parametrize("fourier", [-0.1, 1.1])
def test_parts_outside_0_to_1_are_refused(fourier: float) -> None:
    with pytest.raises(ValueError, match=r"fourier=.* Give 0 \(VPT\) to 1"):
        VFPT(tiny(), fourier=fourier)
