"""Simulation of perturbations, and its evaluation against observed data."""
