"""Softmax attention, by the fastest exact way that this device and dtype have."""

import torch
import torch.nn.functional as F
from torch import Tensor

from elit.precision import fast_bfloat16

HALVES = (torch.bfloat16, torch.float16)


def attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: (B, H, N, D) queries over (B, H, M, D) keys and values.

    Half precision on a CPU (`benchmarks/attention.py`): where the processor has no instructions for it, the products are
    made in float32, which is faster and exacter; where it has, the backward pass of torch's fused kernel takes several times
    as long as that of the three operations it fuses, so with gradients they are written out. So they are for no samples,
    which kernels of GPUs refuse. Everywhere else it is fused.
    """
    half_on_cpu = q_BHND.device.type == "cpu" and q_BHND.dtype in HALVES
    if half_on_cpu and not fast_bfloat16(q_BHND.device):
        return F.scaled_dot_product_attention(q_BHND.float(), k_BHMD.float(), v_BHMD.float()).to(q_BHND.dtype)
    slow = half_on_cpu and q_BHND.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if slow or not len(q_BHND):
        scores = (q_BHND * q_BHND.shape[-1] ** -0.5) @ k_BHMD.transpose(-1, -2)
        return scores.softmax(-1) @ v_BHMD
    return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD)
