"""Where an aerial pixel stands in a panorama, and what part of a panorama is seen."""
