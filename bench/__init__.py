"""Measurements of whole pairs, each as a ratio to a plain program that does the same without a gap, in the same run."""
