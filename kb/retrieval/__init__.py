"""Finding passages: text analysis, the legs, fusion, and the one way in."""
