from flowmatch_rl.samplers.base import Draw, Sampler, SteppingSampler
from flowmatch_rl.samplers.ode import OdeSampler
from flowmatch_rl.samplers.stepping import AverageVelocitySampler, DdimSampler, SdeSampler

__all__ = ["AverageVelocitySampler", "DdimSampler", "Draw", "OdeSampler", "Sampler", "SdeSampler", "SteppingSampler"]
