"""Features to and from other tools: CLAM, TRIDENT, STAMP, wsidata (LazySlide), raw2features.

    tool          files                                            coordinates
    clam          patches/<slide>.h5, h5_files/<slide>.h5,         level-0 pixels
                  pt_files/<slide>.pt
    trident       <mag>x_<px>px_<ov>px_overlap/patches/            level-0 pixels
                  <slide>_patches.h5, .../features_<encoder>/<slide>.h5
    stamp         <encoder>/<slide>.h5                             micrometres
    wsidata       <slide>.zarr (SpatialData, zarr v3)              level-0 pixels
    raw2features  <slide>.embeddings.zarr (zarr v2)                level-0 pixels

The frame is openslide's in all of them, as in a feature store: its origin is the corner of the
whole raster, so that a scan's bounds are never subtracted (QuPath alone does that, and none of
these files is made for it). What a file does not say is never guessed: see `GivenFacts`.

Tiles that could not be read have no row in other tools' files and are left out. What is imported
has unknown quality, and its tissue is the union of its tiles.
"""
