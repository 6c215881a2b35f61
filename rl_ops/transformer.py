"""A causal transformer that acts by what came before: returns-to-go, observations and actions.

Legend: B rows, K steps, L tokens, D features, H heads, P distribution parameters.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from rl_ops.model_spec import ModelSpec
from rl_ops.models import ACTIVATIONS, ConvEncoder, FreeParams


class Block(nn.Module):
    """Attention, then two fully connected layers, each of normalised input and added to it.

    Own layers: on one core a learner's step at the authors' sizes takes 353 ms, and 449 with
    nn.TransformerEncoder, which computes tokens that nobody asks for.

    Source: Radford et al. 2019 (GPT-2), section 2.3; Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, width: int, *, heads: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self._activation = ACTIVATIONS[activation]
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, bias_BLL: Tensor, asked: slice) -> Tensor:
        """What becomes of the tokens that are asked for: [B, asked, D].

        Args:
            x_BLD: all tokens.
            bias_BLL: [B, L, L] added to attention: 0, or -inf where one may not look.
            asked: of the tokens; nobody looks at the others in a last block.
        """
        normed, own = self.attention_norm(x_BLD), x_BLD[:, asked]
        query = self._split(self.query(normed[:, asked]))
        key, value = map(self._split, self.key_value(normed).chunk(2, 2))
        found = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias_BLL[:, None, asked],
            dropout_p=self.dropout if self.training else 0.0,
        )
        own = own + self._dropped(self.attention_out(found.transpose(1, 2).flatten(2)))
        hidden = self._activation(self.wide(self.norm(own)))
        return own + self._dropped(self.narrow(hidden))

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, H, L, D / H]."""
        rows, tokens, width = x.shape
        return x.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training) if self.dropout else x


class DecisionTransformer(FreeParams):
    """Params of the action that the next return-to-go asks for, given K steps up to it.

    A step is three tokens, its return-to-go, its observation and its action, that share the
    embedding of its t; the action is read off the observation's token.

    Source: Chen et al. 2021, arXiv:2106.01345, algorithm 1. Differs: no tanh at the end, because
    a distribution comes after it; embeddings of t start as small as GPT-2's, so that a t beyond the
    data's changes little.
    """

    target_return: Tensor
    return_scale: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if spec.sequence is None:
            raise ValueError("a DecisionTransformer needs ModelSpec.sequence")
        self.sequence, width = spec.sequence, _width(spec)
        self.conv = ConvEncoder(spec) if spec.kind == "cnn" else None
        size = math.prod(spec.obs_shape) if self.conv is None else self.conv.size
        self.obs_in, self.return_in = nn.Linear(size, width), nn.Linear(1, width)
        self.action_in: nn.Module
        if spec.sequence.num_actions:
            self.action_in = nn.Embedding(spec.sequence.num_actions, width)
        else:
            self.action_in = nn.Linear(spec.sequence.action_size, width)
        self.t_in = nn.Embedding(spec.sequence.max_t, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        options: dict[str, Any] = {"activation": spec.activation, "dropout": spec.sequence.dropout}
        self.blocks = nn.ModuleList(
            Block(width, heads=spec.sequence.heads, **options) for _ in spec.hidden
        )
        self.actor_head = nn.Linear(width, spec.param_size)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        # Part of the weights, because they may be known only when the data is.
        self.register_buffer("target_return", torch.tensor(math.nan))
        self.register_buffer("return_scale", torch.tensor(1.0))

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        *,
        t: Tensor,
        mask: Tensor,
        last: bool = False,
    ) -> Tensor:
        """Params [B, K, P] of each step's action, of those before it and of what led there.

        Args:
            obs: [B, K, *shape] what the module is fed.
            action: [B, K] int64 or [B, K, *shape]; a step's own has no say in its params.
            return_to_go: [B, K] in units of the return.
            t: [B, K] int64 step of the episode.
            mask: [B, K] bool, False where there is no step.
            last: give those of the last step alone, [B, 1, P].
        """
        x_BLD = self._tokens(obs, action, return_to_go, t)
        bias_BLL = _bias(mask, x_BLD.dtype)
        # Of three tokens to a step the second is asked for, and nobody needs the last action.
        asked = slice(-1, None) if last else slice(1, None, 3)
        everything = slice(None)
        for i, block in enumerate(self.blocks):
            is_last = i == len(self.blocks) - 1
            x_BLD = block(x_BLD, bias_BLL, asked if is_last else everything)
        params_BKP = self.actor_head(self.norm_out(x_BLD))
        return self._with_free(params_BKP.flatten(0, 1)).view_as(params_BKP)

    def _tokens(self, obs: Tensor, action: Tensor, return_to_go: Tensor, t: Tensor) -> Tensor:
        """[B, 3 K - 1, D]: all but the last step's action."""
        rows, steps = return_to_go.shape
        flat = obs.flatten(0, 1)
        if self.conv is None:
            features = flat.float().flatten(1) * self.spec.obs_scale
        else:
            features = self.conv(flat)
        if not self.sequence.num_actions:
            action = action.reshape(rows, steps, self.sequence.action_size)
        scaled = (return_to_go / self.return_scale)[..., None]
        seen = self.obs_in(features).view(rows, steps, -1)
        parts = [self.return_in(scaled), seen, self.action_in(action)]
        at_BKD = self.t_in(t.clamp(max=self.sequence.max_t - 1))
        x_BLD = (torch.stack(parts, 2) + at_BKD[:, :, None]).flatten(1, 2)[:, :-1]
        return dropout(self.norm_in(x_BLD), self.sequence.dropout, self.training)


def _width(spec: ModelSpec) -> int:
    """Of every block."""
    assert spec.sequence is not None  # the caller's check
    widths, heads = set(spec.hidden), spec.sequence.heads
    if len(widths) != 1 or spec.hidden[0] % heads:
        raise ValueError(
            f"model.hidden={list(spec.hidden)} are the widths of a transformer's blocks: they must "
            f"be one number, a multiple of its {heads} heads"
        )
    return spec.hidden[0]


def _bias(mask_BK: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, L, L] of attention: 0 where a token looks at itself or at a step's before it."""
    is_step = mask_BK.repeat_interleave(3, 1)[:, :-1]
    tokens = is_step.shape[1]
    here = torch.ones(tokens, tokens, dtype=torch.bool, device=mask_BK.device)
    # Itself always: where all is -inf, softmax gives NaN.
    seen_BLL = here.tril() & is_step[:, None] | here.diag().diag()
    bias = torch.zeros(seen_BLL.shape, dtype=dtype, device=mask_BK.device)
    return bias.masked_fill_(~seen_BLL, -math.inf)
