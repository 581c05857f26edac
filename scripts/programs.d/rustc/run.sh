set -e
"$RUSTC" --version
"$RUSTC" --edition 2024 -O -C codegen-units=2 -o program main.rs
./program
"$RUSTC" --edition 2024 --test -o tests main.rs 2> /dev/null
./tests -q > tests.out
head -n 3 tests.out
rm tests.out
echo 'fn main() { let x: u8 = "no"; }' > broken.rs
"$RUSTC" broken.rs || echo "broken: $?"
