#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
unsigned long work(unsigned long);
static void *thread(void *p) {
    unsigned long *v = p;
    *v = work(*v);
    return 0;
}
int main(int argc, char **argv) {
    unsigned long v[4];
    pthread_t t[4];
    for (int i = 0; i < 4; i++) {
        v[i] = i + argc;
        if (pthread_create(&t[i], 0, thread, &v[i])) return 2;
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], 0);
        printf("%d %lu %.17g\n", i, v[i], sin((double)v[i]));
    }
    char *s = strdup(argv[1]);
    printf("%s %zu\n", s, strlen(s));
    free(s);
    return 12;
}
