/*
 * stress: random operations by many threads on lazily restored memory, against a model of what each
 * byte must be. See model.h for the model and operations.h for what is done.
 *
 * Exit status: 0 all was right, 1 something was not (which page, what was expected and seen, and
 * the last operations on it are on stderr), 2 something hangs, 3 it could not begin, 77 there is no
 * userfaultfd here.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "guard.h"
#include "operations.h"

#define FEATURE_POISON (1ull << 14)

static const struct option options[] = {
	{"seed", required_argument, NULL, 's'},
	{"seconds", required_argument, NULL, 't'},
	{"threads", required_argument, NULL, 'n'},
	{"steps", required_argument, NULL, 'c'},
	{"slots", required_argument, NULL, 'l'},
	{"without", required_argument, NULL, 'w'},
	{"only", required_argument, NULL, 'o'},
	{"no-fork", no_argument, NULL, 'F'},
	{"no-damage", no_argument, NULL, 'D'},
	{"no-fill", no_argument, NULL, 'B'},
	{"inline", required_argument, NULL, 'i'},
	{"user-mode", no_argument, NULL, 'u'},
	{"hang", required_argument, NULL, 'h'},
	{"verbose", no_argument, NULL, 'v'},
	{NULL, 0, NULL, 0},
};

static const char usage[] =
	"stress [--seed N] [--seconds S] [--threads T] [--steps N] [--slots N] [--no-fork]\n"
	"       [--no-damage] [--no-fill] [--inline PERCENT] [--user-mode] [--without OP,...] "
	"[--only OP,...]\n"
	"       [--hang SECONDS] [--verbose]\n"
	"Operations:";

__attribute__((noreturn)) static void show_usage(void)
{
	fputs(usage, stderr);
	for (int op = 0; op < OPS; op++)
		fprintf(stderr, " %s", op_names[op]);
	fputc('\n', stderr);
	exit(3);
}

static uint32_t parse_ops(char *list)
{
	uint32_t mask = 0;

	for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
		int op = 0;

		while (op < OPS && strcmp(name, op_names[op]) != 0)
			op++;
		if (op == OPS)
			show_usage();
		mask |= 1u << op;
	}
	return mask;
}

static void parse(int argc, char **argv)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	int option;

	settings = (struct settings){
		.seed = now_ns() ^ (uint64_t)getpid() << 40,
		.seconds = 10,
		.threads = cores > 4 ? (int)cores : 4,
		.slots = 3,
		.with_damage = true,
		.with_fill = true,
		.inline_percent = 40,
		.hang_s = 60,
	};
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		uint64_t number = optarg ? strtoull(optarg, NULL, 0) : 0;

		switch (option) {
		case 's':
			settings.seed = number;
			break;
		case 't':
			settings.seconds = (unsigned)number;
			break;
		case 'n':
			settings.threads = (int)number;
			break;
		case 'c':
			settings.max_steps = number;
			break;
		case 'l':
			settings.slots = (unsigned)number;
			break;
		case 'w':
			settings.without |= parse_ops(optarg);
			break;
		case 'o':
			settings.without |= ~parse_ops(optarg);
			break;
		case 'F':
			settings.without |= 1u << OP_FORK;
			break;
		case 'D':
			settings.with_damage = false;
			break;
		case 'B':
			settings.with_fill = false;
			break;
		case 'i':
			settings.inline_percent = (unsigned)number;
			break;
		case 'u':
			settings.user_mode = true;
			settings.without |= 1u << OP_PIPE;
			break;
		case 'h':
			settings.hang_s = (unsigned)number;
			break;
		case 'v':
			settings.verbose = true;
			break;
		default:
			show_usage();
		}
	}
	if (optind < argc || settings.threads < 1 || settings.threads > THREADS_MAX
	    || settings.slots < 1 || settings.slots > SLOTS_MAX)
		show_usage();
}

/* What the kernel cannot do is left out, and said. */
static void probe(void)
{
	struct lr_uffd_probe probe;

	lr_uffd_probe(&probe);
	if (!settings.user_mode && probe.device_error && probe.syscall_error) {
		printf("stress: skipped: no userfaultfd here: %s\n", strerror(probe.syscall_error));
		exit(77);
	}
	if (settings.with_damage && !(probe.features & FEATURE_POISON)) {
		/* A fence is memory without access there, to which mprotect gives it back. */
		settings.without |= 1u << OP_PROTECT;
		printf("stress: without protect: this kernel has no UFFDIO_POISON\n");
	}
}

/* ---- The threads ---------------------------------------------------------------------- */

static void *work(void *argument)
{
	struct actor *actor = argument;
	int thread = actor->thread;

	actor_open(actor, thread, 0);
	actor->row = row_take(0, thread);
	row_adopt(actor->row);
	actor->usable = (1u << slot_count) - 1;
	for (unsigned i = 0; i < slot_count; i++)
		if (slots[i].keeper == thread) {
			pthread_rwlock_wrlock(&slots[i].lock);
			slot_open(actor, &slots[i], draw(actor));
			pthread_rwlock_unlock(&slots[i].lock);
		}
	/* All slots are open from here on. */
	for (unsigned i = 0; i < slot_count; i++)
		for (bool is_open = false; !is_open;) {
			pthread_rwlock_rdlock(&slots[i].lock);
			is_open = slots[i].is_open;
			pthread_rwlock_unlock(&slots[i].lock);
		}
	for (uint64_t step = 0;
	     !atomic_load(&board->stop) && (!settings.max_steps || step < settings.max_steps);
	     step++)
		act(actor);
	note(actor, OP_FORK, NULL, NULL, 3);
	children_reap(actor, true);
	row_give_back(actor->row, atomic_load(&actor->row->state));
	actor_close(actor);
	return NULL;
}

/* ---- Watching ------------------------------------------------------------------------- */

static void print_rows(void)
{
	for (unsigned i = 0; i < ROWS_MAX; i++) {
		struct row *row = &board->rows[i];
		uint64_t what = atomic_load(&row->now);
		char path[64], where[128] = "";
		FILE *file;

		if (!row_is_busy(row))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/wchan", atomic_load(&row->pid),
			 atomic_load(&row->tid));
		file = fopen(path, "r");
		if (file) {
			if (!fgets(where, sizeof(where), file))
				where[0] = '\0';
			fclose(file);
		}
		fprintf(stderr,
			"  pid %d, tid %d, depth %d, thread %d, step %llu: %s in slot %llu, region "
			"%llu, pages %llu to %llu, for %.1f s, in %s\n",
			atomic_load(&row->pid), atomic_load(&row->tid), atomic_load(&row->depth),
			atomic_load(&row->thread), (unsigned long long)atomic_load(&row->step),
			what ? op_names[(what & 31) - 1] : "nothing",
			(unsigned long long)(what >> 5 & 15), (unsigned long long)(what >> 9 & 3),
			(unsigned long long)(what >> 11 & 0xfffff),
			(unsigned long long)((what >> 11 & 0xfffff) + (what >> 31 & 0xfff)),
			(double)(now_ns() - atomic_load(&row->since)) / 1e9, where);
	}
}

/* Everything this run started. */
static void kill_all(void)
{
	for (unsigned i = 0; i < ROWS_MAX; i++) {
		int pid = atomic_load(&board->rows[i].pid);

		if (row_is_busy(&board->rows[i]) && pid > 0 && pid != getpid())
			kill(pid, SIGKILL);
	}
}

__attribute__((noreturn)) static void end_failed(int status)
{
	/* Whoever failed may still be writing why. */
	for (int i = 0; i < 100 && atomic_load(&board->failed) == 1; i++)
		usleep(100000);
	kill_all();
	fprintf(stderr, "stress: again with: --seed %llu --threads %d --slots %u --inline %u\n",
		(unsigned long long)settings.seed, settings.threads, settings.slots,
		settings.inline_percent);
	_exit(status);
}

/* Of grandchildren whose parent has gone: nobody else looks after them. One that was killed may
 * have been so before it had the row, or before it was made. */
static bool has_vanished(const struct row *row, int pid)
{
	int who = pid ? pid : atomic_load(&row->taker);

	if (kill(who, 0) == 0 || errno != ESRCH || !row_is_busy(row)
	    || atomic_load(&row->pid) != pid)
		return false;
	if (pid && !was_killed(pid))
		fail("grandchild %d vanished", pid);
	return was_killed(who);
}

/* Ends the run where something failed, hangs or vanished. Gives the number of busy rows of that
 * depth or deeper. */
static unsigned watch(int depth)
{
	uint64_t limit_ns = settings.hang_s * 1000000000ull;
	unsigned busy = 0;

	if (atomic_load(&board->failed))
		end_failed(1);
	for (unsigned i = 0; i < ROWS_MAX; i++) {
		struct row *row = &board->rows[i];
		uint64_t since = atomic_load(&row->since), now = now_ns();
		int state = atomic_load(&row->state), pid = atomic_load(&row->pid);

		if (!row_is_busy(row) || atomic_load(&row->depth) < depth)
			continue;
		busy++;
		if (now > since && now - since > limit_ns) {
			fprintf(stderr, "stress: HANG, seed %llu: who does what:\n",
				(unsigned long long)settings.seed);
			print_rows();
			end_failed(2);
		}
		if (atomic_load(&row->depth) > 1 && has_vanished(row, pid)
		    && atomic_load(&row->state) == state)
			row_give_back(row, state);
	}
	return busy;
}

static void print_ops(uint64_t begin_ns)
{
	printf("stress: %.1f s:", (double)(now_ns() - begin_ns) / 1e9);
	for (int op = 0; op < OPS; op++)
		printf(" %s %llu", op_names[op], (unsigned long long)atomic_load(&board->done[op]));
	putchar('\n');
	fflush(stdout);
}

static void print_summary(uint64_t begin_ns)
{
	uint64_t total = 0;

	printf("%-12s %12s %12s %12s\n", "operation", "done", "refused", "longest ms");
	for (int op = 0; op < OPS; op++) {
		uint64_t done = atomic_load(&board->done[op]);

		total += done;
		if (done || atomic_load(&board->refused[op]))
			printf("%-12s %12llu %12llu %12.1f\n", op_names[op],
			       (unsigned long long)done,
			       (unsigned long long)atomic_load(&board->refused[op]),
			       (double)atomic_load(&board->longest_ns[op]) / 1e6);
	}
#define FIGURE(name, value) printf("%-28s %llu\n", name, (unsigned long long)(value))
	FIGURE("operations", total);
	FIGURE("bytes compared", atomic_load(&board->bytes_checked));
	FIGURE("sessions", atomic_load(&board->sessions));
	FIGURE("with a fill", atomic_load(&board->fills));
	FIGURE("with clusters first", atomic_load(&board->replayed));
	FIGURE("inline", atomic_load(&board->in_thread));
	FIGURE("page by page", atomic_load(&board->by_page));
	FIGURE("recorded", atomic_load(&board->recorded));
	FIGURE("clusters in the records", atomic_load(&board->touched));
	FIGURE("rounds near who faults", atomic_load(&board->near_rounds));
	FIGURE("calls on missing pages", atomic_load(&board->bad_addresses));
	FIGURE("faults served", atomic_load(&board->faults));
	FIGURE("pages copied", atomic_load(&board->pages_copied));
	FIGURE("of them moved", atomic_load(&board->pages_moved));
	FIGURE("pages zeroed", atomic_load(&board->pages_zeroed));
	FIGURE("regions given back", atomic_load(&board->released));
	FIGURE("damaged clusters fenced", atomic_load(&board->damaged_clusters));
	FIGURE("signals that had to come", atomic_load(&board->signals));
	FIGURE("children", atomic_load(&board->forks));
	FIGURE("their children", atomic_load(&board->grandchildren));
	FIGURE("killed", atomic_load(&board->kills));
	printf("stress: %.1f s, seed %llu, %d threads: 0 mismatches\n",
	       (double)(now_ns() - begin_ns) / 1e9, (unsigned long long)settings.seed,
	       settings.threads);
}

static void run(void)
{
	static struct actor actors[THREADS_MAX];
	pthread_t threads[THREADS_MAX];
	uint64_t begin_ns = now_ns(), shown_ns = begin_ns;

	for (int i = 0; i < settings.threads; i++) {
		actors[i].thread = i;
		actors[i].random = settings.seed ^ (uint64_t)(i + 1) << 48;
		if (pthread_create(&threads[i], NULL, work, &actors[i]))
			fail("no thread");
	}
	usleep(100000);
	while (watch(0) > 0) {
		usleep(50000);
		if (now_ns() - begin_ns > settings.seconds * 1000000000ull)
			atomic_store(&board->stop, 1);
		if (settings.verbose && now_ns() - shown_ns > 1000000000) {
			shown_ns = now_ns();
			print_ops(begin_ns);
		}
	}
	for (int i = 0; i < settings.threads; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < slot_count; i++)
		slot_close(&actors[0], &slots[i], settings.seed + i);
	watch(0);
	print_summary(begin_ns);
}

int main(int argc, char **argv)
{
	pthread_rwlockattr_t attributes;

	setvbuf(stderr, NULL, _IOLBF, 4096);
	board_open();
	parse(argc, argv);
	probe();
	printf("stress: seed %llu, %d threads, %u slots, %u s\n", (unsigned long long)settings.seed,
	       settings.threads, settings.slots, settings.seconds);
	fflush(stdout);
	/* Whoever waits to change something for all goes first. */
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&changes, &attributes);
	pthread_rwlock_init(&moves, &attributes);
	guard_open();
	sources_open(settings.with_damage);
	model_open(settings.slots, settings.threads, settings.seed);
	run();
	sources_close();
	return 0;
}
