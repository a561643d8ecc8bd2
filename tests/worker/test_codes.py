from __future__ import annotations

import pytest
import torch

from worker.codes import full_precision_coded


@pytest.mark.parametrize(("n_bits", "n_steps"), [(4, 15), (8, 254)])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_weight_is_off_by_half_a_step_at_most(n_bits: int, n_steps: int, shift: float) -> None:
    values = torch.randn((40, 96), generator=torch.Generator().manual_seed(0)) + shift
    values[0, :32] = 0.0
    coded = full_precision_coded(values, n_bits)
    found = coded.values(torch.float32).view(40, 3, 32)
    groups = values.view(40, 3, 32)
    spread = groups.amax(-1) - groups.amin(-1) if n_bits == 4 else 2 * groups.abs().amax(-1)
    worst = (found - groups).abs().amax(-1)
    # scales and zeros are rounded to bfloat16 first, which at the ends of the range costs a little more
    assert (worst <= spread / n_steps * 0.5 + groups.abs().amax(-1) * 2**-7).all()
    assert torch.equal(found[0, 0], groups[0, 0])
