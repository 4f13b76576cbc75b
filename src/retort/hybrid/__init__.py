"""DNN-HMM hybrid systems: phones, HMM topology, alignment from nothing, the senone tree. numpy, no torch."""
