/* What scripts/cachegrind runs under both simulators: one static program, its kernels by name. No input, no floating
 * point that depends on the machine, memory at fixed addresses. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static uint64_t sum(const void *data, size_t bytes)
{
	const uint64_t *p = data;
	uint64_t s = 0;
	for (size_t i = 0; i < bytes / 8; i++)
		s = (s << 1 | s >> 63) ^ p[i];
	return s;
}

/* A random cycle through 4 MiB, a line a step. */
static uint64_t chase(void)
{
	enum { LINES = 4 << 20 >> 6 };
	static struct { uint64_t next, pad[7]; } line[LINES] __attribute__((aligned(4096)));
	static uint32_t order[LINES];
	for (uint32_t i = 0; i < LINES; i++)
		order[i] = i;
	for (uint32_t i = LINES - 1; i > 0; i--) {
		uint32_t j = rnd() % i, t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	for (uint32_t i = 0; i < LINES; i++)
		line[order[i]].next = order[(i + 1) % LINES];
	uint64_t at = 0, s = 0;
	for (int i = 0; i < 1500000; i++) {
		at = line[at].next;
		s = (s << 1 | s >> 63) ^ at;
	}
	return s;
}

/* Seven points on a cube of 64^3 doubles, two of 2 MiB. */
static uint64_t stencil(void)
{
	enum { N = 64 };
	static double a[N][N][N] __attribute__((aligned(4096))), b[N][N][N] __attribute__((aligned(4096)));
	for (int i = 0; i < N * N * N; i++)
		a[0][0][i] = (i * 7919) % 1024 / 1024.0;
	for (int sweep = 0; sweep < 6; sweep++) {
		for (int z = 1; z < N - 1; z++)
			for (int y = 1; y < N - 1; y++)
				for (int x = 1; x < N - 1; x++)
					b[z][y][x] = 0.4 * a[z][y][x] + 0.1 * (a[z][y][x - 1] + a[z][y][x + 1] + a[z][y - 1][x] +
						a[z][y + 1][x] + a[z - 1][y][x] + a[z + 1][y][x]);
		memcpy(a, b, sizeof a);
	}
	return sum(a, sizeof a);
}

/* Random updates of 16 MiB. */
static uint64_t gups(void)
{
	enum { WORDS = 16 << 20 >> 3 };
	static uint64_t table[WORDS] __attribute__((aligned(4096)));
	for (int i = 0; i < 1500000; i++) {
		uint64_t r = rnd();
		table[r % WORDS] ^= r;
	}
	return sum(table, sizeof table);
}

/* Copies of pieces of all sizes; with an offset, stores of every second round cross lines. */
static uint64_t copies(int offset)
{
	enum { SIZE = 2 << 20 };
	static char from[SIZE + 64] __attribute__((aligned(4096))), to[SIZE + 64] __attribute__((aligned(4096)));
	for (int i = 0; i < SIZE; i++)
		from[i] = i * 31 % 251;
	for (int round = 0; round < 6; round++)
		for (size_t piece = 16; piece <= SIZE; piece *= 4)
			for (size_t at = 0; at + piece <= SIZE; at += piece)
				memcpy(to + at + (round & 1) * offset, from + at, piece);
	return sum(to, SIZE);
}

static uint64_t aligned(void)
{
	return copies(0);
}

static uint64_t crossing(void)
{
	return copies(3);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* qsort of 200,000 words. */
static uint64_t sort(void)
{
	enum { WORDS = 200000 };
	uint64_t *w = malloc(WORDS * sizeof *w);
	for (int i = 0; i < WORDS; i++)
		w[i] = rnd();
	qsort(w, WORDS, sizeof *w, compare);
	uint64_t s = sum(w, WORDS * sizeof *w);
	free(w);
	return s;
}

/* LZ77 with a hash table, over a text of repeated words. */
static uint64_t compress(void)
{
	enum { SIZE = 1 << 20, HASH = 1 << 15 };
	static unsigned char text[SIZE + 16], out[2 * SIZE];
	static uint32_t head[HASH];
	char word[512][12];
	for (int i = 0; i < 512; i++)
		for (int k = 0; k < 12; k++)
			word[i][k] = 'a' + rnd() % 26;
	for (int n = 0; n < SIZE;) {
		uint64_t r = rnd();
		int w = r % 512, len = 3 + r / 512 % 9;
		for (int k = 0; k < len && n < SIZE; k++)
			text[n++] = word[w][k];
		if (n < SIZE)
			text[n++] = ' ';
	}
	size_t o = 0;
	for (uint32_t i = 0; i < SIZE;) {
		uint32_t four;
		memcpy(&four, text + i, 4);
		uint32_t *h = &head[four * 2654435761u >> 17];
		uint32_t from = *h, len = 0;
		*h = i;
		if (from < i)
			while (len < 255 && i + len < SIZE && text[from + len] == text[i + len])
				len++;
		if (len >= 4) {
			out[o++] = len;
			out[o++] = i - from;
			out[o++] = (i - from) >> 8;
			i += len;
		} else {
			out[o++] = 0;
			out[o++] = text[i++];
		}
	}
	return sum(out, o) ^ o;
}

/* Byte copies and fills by repeated string instructions. */
static uint64_t rep(void)
{
	enum { SIZE = 1 << 18 };
	static char a[SIZE], b[SIZE];
	for (int round = 0; round < 8; round++) {
		void *d = a, *s = b;
		size_t n = SIZE / 8;
		__asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(rnd()) : "memory");
		d = b;
		s = a;
		n = SIZE;
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	}
	return sum(b, SIZE);
}

static int compare_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* qsort of 5,000 lines by strcmp, each in a piece of the heap of its own. The first is at the beginning of a page. */
static uint64_t lines(void)
{
	enum { LINES = 5000 };
	static char *line[LINES];
	uintptr_t pad = -((uintptr_t)malloc(4000) + 4016) & 4095;
	if (!malloc(pad < 32 ? pad + 4096 - 8 : pad - 8))
		return 0;
	for (int i = 0; i < LINES; i++) {
		int len = 30 + rnd() % 70;
		line[i] = malloc(len + 1);
		for (int k = 0; k < len; k++)
			line[i][k] = k < 8 ? 'a' : 'a' + rnd() % 2;
		line[i][len] = 0;
	}
	qsort(line, LINES, sizeof *line, compare_text);
	uint64_t s = (uintptr_t)line[0] & 4095;
	for (int i = 0; i < LINES; i++)
		for (char *p = line[i]; *p; p++)
			s = s * 31 + *p;
	return s;
}

/* 1,024 functions of about 300 bytes each, in an order that nothing guesses: code that does not fit L1. */
#define STEP(n, k) x = (x << (k) | x >> (64 - (k))) * (2 * UINT64_C(0x##n##1) + 0x9e3779b97f4a7c15 + k);
#define F(n)								\
	static __attribute__((noinline)) uint64_t f##n(uint64_t x)	\
	{								\
		STEP(n, 1) STEP(n, 7) STEP(n, 13) STEP(n, 19)		\
		if (x & 1) {						\
			STEP(n, 23) STEP(n, 29) STEP(n, 31)		\
		}							\
		STEP(n, 37) STEP(n, 41) STEP(n, 43)			\
		return x;						\
	}
#define A(n) f##n,
#define FOUR(X, n) X(n##0) X(n##1) X(n##2) X(n##3)
#define SIXTEEN(X, n) FOUR(X, n##0) FOUR(X, n##1) FOUR(X, n##2) FOUR(X, n##3)
#define QUARTER(X, n) SIXTEEN(X, n##0) SIXTEEN(X, n##1) SIXTEEN(X, n##2) SIXTEEN(X, n##3)
#define ALL(X, n) QUARTER(X, n##0) QUARTER(X, n##1) QUARTER(X, n##2) QUARTER(X, n##3)
#define EVERY(X) ALL(X, 0) ALL(X, 1) ALL(X, 2) ALL(X, 3)
EVERY(F)

static uint64_t code(void)
{
	static uint64_t (*const all[])(uint64_t) = { EVERY(A) };
	uint64_t x = 1;
	for (int i = 0; i < 400000; i++)
		x ^= all[rnd() % 1024](x);
	return x;
}

int main(int argc, char **argv)
{
	static const struct { const char *name; uint64_t (*run)(void); } programs[] = {
		{ "chase", chase }, { "stencil", stencil }, { "gups", gups }, { "memcpy", aligned },
		{ "crossing", crossing },
		{ "sort", sort }, { "compress", compress }, { "rep", rep }, { "code", code },
		{ "lines", lines },
	};
	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
		if (argc > 1 && !strcmp(argv[1], programs[i].name)) {
			printf("%s: %016lx\n", argv[1], programs[i].run());
			return 0;
		}
	return argc > 1;
}
