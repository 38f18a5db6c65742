# SPDX-License-Identifier: Apache-2.0
"""Supernets as other code bases write them: their attribute names, keys and signatures.

Plain modules, written here, that know nothing of darts_fast. One file per code base.
"""
