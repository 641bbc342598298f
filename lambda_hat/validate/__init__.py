"""Samplers compared with known answers, in two suites.

The truth suite (`noiseless`) tries chosen settings on targets without noise. The noisy suite (`noisy`) tries default
settings on noisy data, minibatches, badly scaled designs and trained networks.
"""
