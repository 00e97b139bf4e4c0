"""Ways to compress a fine-tune, one module each, and the evaluation that they share.

A method is a function of the base's and the fine-tune's state dicts (float32, names of `transformers`, no tied lm_head)
and a Case; it returns the merged state dict, W_b + Δ̂, and every bit that it would store.
"""
