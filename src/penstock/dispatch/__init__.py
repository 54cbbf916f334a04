"""What both the recorder and the engine need to know of torch: storages, schemas, the op clock."""
