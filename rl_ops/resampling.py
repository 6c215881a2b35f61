"""Few of many weighted samples, new weights to them, and every sum over them right on average.

Legend: B rows, N samples of a row, M of them kept.
"""

import torch
from torch import Tensor


def resample(weight_BN: Tensor, count: int, offset_B: Tensor) -> tuple[Tensor, Tensor]:
    """Keep M samples of each row: heavy ones as they are, of light ones some in place of all.

        p_i = min(w_i / c, 1),  c such that sum_i p_i = M;   w_i / p_i = max(w_i, c) where kept

    For any f the expectation over offsets of sum_kept w'_i f_i is sum_i w_i f_i, and of all ways
    to keep M this has the least expected squared error of the weights.

    Args:
        weight_BN: [B, N], at least 0.
        count: M < N.
        offset_B: [B] uniform in [0, 1), one draw of each row.

    Returns:
        Which [B, M], and their weights [B, M].

    Source: Fearnhead & Clifford 2003, "On-line inference for hidden Markov models via particle
    filters", J. R. Stat. Soc. B 65(4), sections 5.2 and 5.3: optimal resampling, drawn
    systematically. Differs: samples keep their order; where fewer than M have a weight at all,
    the others kept weigh 0.
    """
    places = torch.arange(count, device=weight_BN.device)
    sorted_BN = weight_BN.sort(1, descending=True).values
    # with the j heaviest kept as they are, the others share their sum among M - j
    rest_BM = sorted_BN.flip(1).cumsum(1).flip(1)[:, :count]
    share_BM = rest_BM / (count - places)
    first_B1 = (sorted_BN[:, :count] <= share_BM).to(torch.uint8).argmax(1, keepdim=True)
    least_B1 = share_BM.gather(1, first_B1).clamp_(min=torch.finfo(weight_BN.dtype).tiny)
    reach_BN = (weight_BN / least_B1).clamp_(max=1.0).cumsum(1)
    point_BM = places + offset_B.unsqueeze(1)
    which_BM = torch.searchsorted(reach_BN, point_BM, right=True)
    is_one_BM = which_BM < weight_BN.shape[1]  # past the end where fewer than M have a weight
    which_BM.clamp_(max=weight_BN.shape[1] - 1)
    return which_BM, torch.maximum(weight_BN.gather(1, which_BM), least_B1).mul_(is_one_BM)
