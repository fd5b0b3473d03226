#include "witness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "follow.h"

#define NOTES_MAX 32u
/* So many later forks may begin before a child has looked at its own one's. */
#define RECORDS 64u
/* Of 50 microseconds, and the timer's slack. */
#define HEAR_TRIES 4000

struct lr_witness_record {
	_Atomic uint32_t number; /* of the fork, when all is written; 0 meanwhile */
	uint32_t count;          /* more than NOTES_MAX: not all were kept */
	struct lr_uffd_message notes[NOTES_MAX];
};

static struct lr_witness_record *record_of(struct lr_target *target)
{
	return &target->witness[target->forks % RECORDS];
}

/* Where there is no memory for them, a child goes by nothing: it may touch nothing that is missing.
 */
static bool have_records(struct lr_target *target)
{
	void *records = target->witness;

	if (records)
		return true;
	records = mmap(NULL, RECORDS * sizeof(struct lr_witness_record), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	target->witness = records == MAP_FAILED ? NULL : records;
	return target->witness;
}

void lr_witness_close(struct lr_target *target)
{
	if (target->witness)
		munmap(target->witness, RECORDS * sizeof(struct lr_witness_record));
	target->witness = NULL;
}

void lr_witness_begin(struct lr_target *target)
{
	struct lr_witness_record *record;

	if (!have_records(target))
		return;
	target->forks += target->forks == UINT32_MAX ? 2 : 1;
	record = record_of(target);
	atomic_store(&record->number, 0);
	record->count = 0;
	atomic_store(&target->is_witnessed, true);
}

void lr_witness_note(struct lr_target *target, const struct lr_uffd_message *message)
{
	struct lr_witness_record *record;

	if (message->kind == LR_UFFD_REMOVE || !atomic_load(&target->is_witnessed))
		return;
	record = record_of(target);
	if (record->count < NOTES_MAX)
		record->notes[record->count] = *message;
	if (record->count <= NOTES_MAX)
		record->count++;
}

void lr_witness_end(struct lr_target *target)
{
	if (!target->witness)
		return;
	atomic_store(&target->is_witnessed, false);
	lr_target_sync(target);
	atomic_store(&record_of(target)->number, target->forks);
}

/* Whether all of a range is mapped to something. */
static bool is_mapped(uint64_t start, uint64_t end)
{
	return msync((void *)(uintptr_t)start, end - start, MS_ASYNC) == 0;
}

static void forbid(uint64_t start, uint64_t end)
{
	mprotect((void *)(uintptr_t)start, end - start, PROT_NONE);
}

static void consider(struct lr_target *target, const struct lr_uffd_message *note)
{
	bool is_old_there = is_mapped(note->start, note->end);
	uint64_t to_end = note->to + (note->end - note->start);

	if (note->kind == LR_UFFD_REMAP && is_old_there && !is_mapped(note->to, to_end))
		return; /* after the copy */
	if (is_old_there) {
		forbid(note->start, note->end);
		if (note->kind == LR_UFFD_REMAP)
			forbid(note->to, to_end);
	}
	lr_follow(target, note);
}

void lr_witness_hear(struct lr_target *target, int parent)
{
	struct lr_witness_record *record = record_of(target);
	struct timespec pause = {.tv_nsec = 50000};
	struct lr_witness_record heard;
	int tries = 0;

	while (atomic_load(&record->number) != target->forks) {
		/* It ended, or is held up: then there is nothing to go by but the table. */
		if (++tries > HEAR_TRIES || getppid() != parent)
			return;
		nanosleep(&pause, NULL);
	}
	memcpy(heard.notes, record->notes, sizeof(heard.notes));
	heard.count = record->count < NOTES_MAX ? record->count : NOTES_MAX;
	if (atomic_load(&record->number) != target->forks)
		return; /* long ago: overwritten by another fork's */
	for (uint32_t i = 0; i < heard.count; i++)
		consider(target, &heard.notes[i]);
}
