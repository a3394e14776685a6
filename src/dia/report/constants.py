"""What pages, pictures and answers say alike. Imports nothing, so that a service starts at once."""

LIMITS = (
    "For research use only. Not a medical device: not for diagnosis, triage or any decision about a patient. "
    "A high score says that an image differs from the normal images of training, not that there is disease; "
    "a low score does not exclude disease. Heatmaps hint at where the score comes from and prove nothing."
)
DISSOLVE_TS = (50, 100, 200, 400)  # diffusion steps of the paper's poster
