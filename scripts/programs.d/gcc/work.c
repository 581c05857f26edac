struct pair { unsigned long a; double b; };
static struct pair table[16];
unsigned long work(unsigned long n) {
    struct pair p = {n, n * 0.5};
    for (int i = 0; i < 100000; i++) {
        p.a = p.a * 6364136223846793005ul + 1442695040888963407ul;
        p.b += (double)(p.a >> 40) / (i + 1);
    }
    __atomic_fetch_add(&table[n & 15].a, p.a, __ATOMIC_RELAXED);
    return p.a ^ (unsigned long)p.b;
}
