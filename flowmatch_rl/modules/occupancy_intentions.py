"""Latents of segments, by which an occupancy learns from data of several policies."""

from dataclasses import replace

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Occupancy
from flowmatch_rl.objectives import standard_normal_divergence


def infer_latents(model: Occupancy, segment: Segment) -> tuple[Segment, Tensor]:
    """Give each segment a latent, inferred from the state at its end and the action taken there.

    It is the latent both of the first state and action and of the last ones, where the occupancy is bootstrapped from:
    one policy took all steps of a segment. Where a segment ends in a terminal state no action follows, and the latent
    is drawn from the prior.

    Args:
        model: The model, with an encoder, whose gradient flows through the latents.
        segment: Segments.

    Returns:
        The segments with their latents as embeddings, shape (B, Z), and the divergence of the distributions that these
        were drawn from from the prior, in nats, shape (B,).

    Raises:
        KeyError: If the segments lack the next action.
    """
    if segment.next_action is None:
        raise KeyError("intentions are inferred from the next actions, which the batch does not hold")
    rows, last = torch.arange(len(segment.length), device=segment.length.device), segment.length - 1
    ended = segment.terminated[rows, last, None]
    mean, log_std = model.latent_distribution(segment.arrivals[rows, last], segment.next_action)
    mean, log_std = mean.masked_fill(ended, 0.0), log_std.masked_fill(ended, 0.0)
    latent = mean + log_std.exp() * torch.randn_like(mean)
    return replace(segment, embedding=latent), standard_normal_divergence(mean, log_std)
