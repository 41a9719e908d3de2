"""Controller machinery: informers, work queue, controllers, leader election."""
