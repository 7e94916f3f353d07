# mmpretrain's own recipe.
_base_ = 'mmpretrain::deit/deit-base_16xb64_in1k.py'
