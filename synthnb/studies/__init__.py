"""Experiments and their reports: parameters, runs, sweeps, doctor, check, ledger, advice."""
