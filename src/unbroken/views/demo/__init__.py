"""The demo: one training twice, one of them killed again and again, and the two compared to the bit.

`stage` finds the model and makes the folder, `arm` starts and kills real processes, `comparison` says whether the two
ended as the same model, `learning` what the model learned, `screen` shows it all, `play` puts them in order.
"""
