"""The building blocks, one file each: mixer, selectors, MITrans, decoupler, views, teacher, network."""
