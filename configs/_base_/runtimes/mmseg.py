# Upstream's, with a runner that checks data and adds hooks that stop at NaN and save at SIGTERM.
_base_ = 'mmseg::_base_/default_runtime.py'

runner_type = 'pelk_mm.CheckedRunner'
