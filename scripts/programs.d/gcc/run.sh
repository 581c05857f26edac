set -eux
gcc -O2 -g -c work.c
gcc -O0 -pipe -c main.c
gcc -save-temps -O1 -S main.c -o main.s
ar rcsD libwork.a work.o
gcc -o dynamic main.o libwork.a -lm -lpthread
gcc -O3 -flto -static -o static main.c work.c -lm
nm -g dynamic > dynamic.nm
objdump -d work.o > work.dump
gcc -fsyntax-only broken.c || echo "broken: $?"
./dynamic "an argument" || echo "dynamic: $?"
./static "an argument" || echo "static: $?"
