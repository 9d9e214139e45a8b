//! What the guest is told about itself and the hypervisor, frozen at first boot.
