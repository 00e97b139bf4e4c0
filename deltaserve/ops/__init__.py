"""Operations on packed deltas: one file per kernel, launch and torch reference of the same function."""
