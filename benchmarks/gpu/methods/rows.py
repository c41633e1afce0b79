"""The columns of the results."""

from __future__ import annotations

FIELDS = (
    *("date", "commit", "device", "torch", "cuda", "cudnn", "driver", "capability", "sm_mhz"),
    *("cell", "mode", "T", "N", "I", "H", "dtype", "tf32", "checked_T"),
    # What was asked for, and the plans that the library takes for it.
    *("forward", "backward", "forward_plan", "backward_plan"),
    # Microseconds of a call by T; ratios above 1 are faster than step by step, and than torch.nn.
    *("rounds", "us", "us_p10", "us_p90", "ratio_stepwise", "ratio_torch"),
    # What the library expects of a step of the recurrence alone.
    *("forward_model_us", "backward_model_us"),
)
