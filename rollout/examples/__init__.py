"""Programs that use the library as a researcher would. They sit above every floor, environments and models included."""
