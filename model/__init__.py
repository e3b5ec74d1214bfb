"""Tensors to tensors: the encoder, its reversible form, sampled encoding and the detector.

Shape legend, used in every docstring and shape comment:
    B  videos               D  feature channels
    N  clips per video      T  feature steps (N x steps per clip)
    L  frames per clip      P  proposals
    C  image channels       K  classes
    H W  pixels             A  annotated actions
    M  kept clips per video: those whose gradient is computed
Segments are (start, end) in feature steps here; step s covers [s, s + 1).
"""
