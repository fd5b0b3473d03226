/*
 * The first process of the guests in tests/integration/test_qemu.py and test_firecracker.py.
 *
 * It fills memory with a pattern, in windows of 256 KiB. Then it goes round for ever: it checks one
 * window, writes the next version of it, and says so on the console. The letter `a` on the console
 * makes it check all windows. What a line says can only be right if each word of the window is in
 * its place, and as it was written last.
 *
 *     init, as PID 1         the memory's size in MiB is fill_mib=N on the kernel's command line;
 *                            free_mib=N is what it uses for a moment, and gives back, before
 *     init expect W V        anywhere: the sum that window W has in version V
 *     init expect-all W R    the sum of all W windows, when round R was the last
 *
 * Linked statically: there is nothing else in the guest, but kernel modules in /modules, which it
 * loads first.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define WINDOW_BYTES (UINT64_C(256) << 10)
#define LINE_WORDS   8
#define WINDOW_LINES (WINDOW_BYTES / (LINE_WORDS * sizeof(uint64_t)))
#define WINDOWS_MAX  4096
#define FIRST_SUM    UINT64_C(0xcbf29ce484222325)

static uint32_t versions[WINDOWS_MAX];

/* What all eight words of a line hold: no other line of any window and version has it (splitmix64,
 * a permutation). Words that repeat make the images small. */
static uint64_t line_value(uint64_t window, uint64_t version, uint64_t line)
{
	uint64_t x = (window << 48 | version << 20 | line) + UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* The place of each word counts. */
static uint64_t add_word(uint64_t sum, uint64_t word)
{
	return (sum ^ word) * UINT64_C(0x100000001b3);
}

static uint64_t expected_sum(uint64_t window, uint64_t version)
{
	uint64_t sum = FIRST_SUM;

	for (uint64_t line = 0; line < WINDOW_LINES; line++) {
		uint64_t value = line_value(window, version, line);

		for (int word = 0; word < LINE_WORDS; word++)
			sum = add_word(sum, value);
	}
	return sum;
}

static void write_window(volatile uint64_t *memory, uint64_t window, uint32_t version)
{
	for (uint64_t line = 0; line < WINDOW_LINES; line++) {
		uint64_t value = line_value(window, version, line);

		for (int word = 0; word < LINE_WORDS; word++)
			*memory++ = value;
	}
	versions[window] = version;
}

static uint64_t sum_window(const volatile uint64_t *memory)
{
	uint64_t sum = FIRST_SUM;

	for (uint64_t word = 0; word < WINDOW_BYTES / sizeof(uint64_t); word++)
		sum = add_word(sum, memory[word]);
	return sum;
}

static const char *verdict(uint64_t sum, uint64_t window)
{
	return sum == expected_sum(window, versions[window]) ? "right" : "WRONG";
}

static void check_all(const uint64_t *memory, uint64_t windows)
{
	uint64_t total = FIRST_SUM, wrong = 0;

	for (uint64_t window = 0; window < windows; window++) {
		uint64_t sum = sum_window(memory + window * (WINDOW_BYTES / sizeof(uint64_t)));

		wrong += *verdict(sum, window) == 'W';
		total = add_word(total, sum);
	}
	printf("guest: all %" PRIu64 " windows, sum %016" PRIx64 ", wrong %" PRIu64 "\n", windows,
	       total, wrong);
}

/* What check_all() prints after that round. */
static uint64_t expected_total(uint64_t windows, uint64_t round)
{
	uint64_t total = FIRST_SUM;

	for (uint64_t window = 0; window < windows; window++) {
		uint64_t visits = round / windows + (round % windows >= window);

		total = add_word(total, expected_sum(window, 1 + visits));
	}
	return total;
}

/* Whether the letter came; waits a moment for it, so that the processor is not all ours. */
static int is_asked(void)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	char letter = 0;

	if (poll(&input, 1, 100) != 1)
		return 0;
	return read(STDIN_FILENO, &letter, 1) == 1 && letter == 'a';
}

/* Memory that the kernel has free, as after a while in any guest: not empty. */
static void leave_behind(uint64_t bytes)
{
	void *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (bytes == 0 || memory == MAP_FAILED)
		return;
	memset(memory, 0x5a, bytes);
	munmap(memory, bytes);
}

/* In the order of their names, which is that in which they need each other. */
static void load_modules(void)
{
	struct dirent **entries;
	int count = scandir("/modules", &entries, NULL, alphasort);

	for (int n = 0; n < count; n++) {
		char path[512];
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", entries[n]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (entries[n]->d_name[0] != '.' && syscall(SYS_finit_module, fd, "", 0) < 0)
			printf("guest: %s: %s\n", path, strerror(errno));
		close(fd);
	}
}

static void open_console(void)
{
	struct termios settings;
	int console;

	if (mount("none", "/dev", "devtmpfs", 0, NULL) < 0)
		reboot(RB_POWER_OFF);
	console = open("/dev/ttyS0", O_RDWR);
	if (console < 0)
		reboot(RB_POWER_OFF);
	for (int fd = 0; fd < 3; fd++)
		dup2(console, fd);
	if (tcgetattr(STDIN_FILENO, &settings) == 0) {
		cfmakeraw(&settings);
		tcsetattr(STDIN_FILENO, TCSANOW, &settings);
	}
}

static uint64_t option_mib(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

static int run_guest(void)
{
	uint64_t windows = option_mib("fill_mib", 64) * 1024 * 1024 / WINDOW_BYTES;
	uint64_t *memory;

	open_console();
	setvbuf(stdout, NULL, _IOLBF, 0);
	load_modules();
	if (windows < 1 || windows > WINDOWS_MAX)
		windows = 1;
	memory = mmap(NULL, windows * WINDOW_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		printf("guest: no memory\n");
		return 1;
	}
	for (uint64_t window = 0; window < windows; window++)
		write_window(memory + window * (WINDOW_BYTES / sizeof(uint64_t)), window, 1);
	leave_behind(option_mib("free_mib", 0) * 1024 * 1024);
	printf("guest: ready, %" PRIu64 " windows\n", windows);
	for (uint64_t round = 0;; round++) {
		uint64_t window = round % windows;
		uint64_t *there = memory + window * (WINDOW_BYTES / sizeof(uint64_t));
		uint64_t sum = sum_window(there);

		printf("guest: round %" PRIu64 " window %" PRIu64 " version %" PRIu32
		       " sum %016" PRIx64 " %s\n",
		       round, window, versions[window], sum, verdict(sum, window));
		write_window(there, window, versions[window] + 1);
		if (is_asked())
			check_all(memory, windows);
	}
}

int main(int argc, char **argv)
{
	if (argc == 4 && strncmp(argv[1], "expect", 6) == 0) {
		uint64_t first = strtoull(argv[2], NULL, 10), second = strtoull(argv[3], NULL, 10);

		printf("%016" PRIx64 "\n", strcmp(argv[1], "expect-all") == 0
						   ? expected_total(first, second)
						   : expected_sum(first, second));
		return 0;
	}
	if (getpid() != 1) {
		fprintf(stderr, "usage: %s expect WINDOW VERSION | expect-all WINDOWS ROUND\n",
			argv[0]);
		return 2;
	}
	run_guest();
	return reboot(RB_POWER_OFF);
}
