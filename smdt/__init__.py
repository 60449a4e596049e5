"""Cross-view geo-localization: training, evaluation and use of the SMDT method (ICME 2022)."""
