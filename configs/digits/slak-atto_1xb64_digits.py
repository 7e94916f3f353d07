_base_ = 'pelk-atto_1xb64_digits.py'

# Stripes must be longer than wide, and they are 5 wide.
model = dict(backbone=dict(type='pelk_mm.SLaK', kernel_sizes=[31, 15, 7, 7]))
