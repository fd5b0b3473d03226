/*
 * What is mapped at an address of this process, by /proc/self/maps. Floor 1. May be called in a
 * signal handler: allocates nothing, keeps errno, and needs some 600 bytes of stack.
 */
#ifndef LR_MAPPING_H
#define LR_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

struct lr_mapping {
	uint64_t start;
	uint64_t end;
	bool is_accessible; /* it may be read */
	bool is_private;    /* and anonymous: of no file, shared with nobody */
};

/* 1: it is there; 0: nothing is; -1: nobody can tell (no /proc, or no descriptor left). */
int lr_mapping_find(uint64_t address, struct lr_mapping *ret_mapping);

#endif
