"""Files of radiographs -> grey pixels in the size of the model, and what their headers say."""
