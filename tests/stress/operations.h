/* What a thread of a stress run, or a child, does. */
#ifndef LR_STRESS_OPERATIONS_H
#define LR_STRESS_OPERATIONS_H

#include "model.h"

struct settings {
	uint64_t seed;
	unsigned seconds;
	uint64_t max_steps; /* a thread, 0: no limit */
	int threads;
	unsigned slots;
	uint32_t without; /* operations, by bit */
	bool with_damage;
	bool with_fill;
	unsigned inline_percent; /* of the sessions: faults are answered by who touches */
	bool user_mode;          /* system calls are not served: no pipes */
	bool verbose;
	unsigned hang_s;
};
extern struct settings settings;

/* Who changes what is known holds it for reading; who makes a child that is to know everything, for
 * writing. */
extern pthread_rwlock_t changes;
/* Who unmaps or moves memory holds it for reading, who forks for writing: what could have been
 * before or after the copy, a child may not touch (docs/reliability.md), and it is not known here
 * which that is. Taken after the slots' locks. */
extern pthread_rwlock_t moves;

void actor_open(struct actor *actor, int thread, int depth);
void actor_close(struct actor *actor);

/* One operation, as the random numbers say. */
void act(struct actor *actor);

/* pages.c: on what pages hold. False: refused, as may be. */
bool do_write(struct actor *actor, struct slot *slot, uint64_t random);
bool do_pipe(struct actor *actor, struct slot *slot, uint64_t random);
bool do_dontneed(struct actor *actor, struct slot *slot, uint64_t random);
bool do_free(struct actor *actor, struct slot *slot, uint64_t random);
/* mappings.c: on how they are mapped. */
bool do_protect(struct actor *actor, struct slot *slot, uint64_t random);
bool do_advise(struct actor *actor, struct slot *slot, uint64_t random);
bool do_lock(struct actor *actor, struct slot *slot, uint64_t random);
bool do_unmap(struct actor *actor, struct slot *slot, uint64_t random);
bool do_replace(struct actor *actor, struct slot *slot, uint64_t random);
bool do_move(struct actor *actor, struct slot *slot, uint64_t random);
/* sessions.c */
bool do_populate(struct actor *actor, struct slot *slot, uint64_t random);
bool do_stats(struct actor *actor, struct slot *slot);
bool do_wait(struct actor *actor, struct slot *slot, uint64_t random);
/* Close the slot's session, if there is one, and open another, if asked. The slot is locked. */
void slot_close(struct actor *actor, struct slot *slot, uint64_t random);
void slot_open(struct actor *actor, struct slot *slot, uint64_t random);
/* children.c */
void do_fork(struct actor *actor, uint64_t random);
void children_reap(struct actor *actor, bool all);

#endif
