import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.stream.*;

public class Main {
    static int counter;
    static volatile boolean stop;
    static final Object lock = new Object();

    static synchronized void increment() { counter++; }

    static class Buffer {
        private final int[] items = new int[8];
        private int head, count;
        synchronized void put(int x) throws InterruptedException {
            while (count == items.length) wait();
            items[(head + count++) % items.length] = x;
            notifyAll();
        }
        synchronized int take() throws InterruptedException {
            while (count == 0) wait();
            int x = items[head];
            head = (head + 1) % items.length;
            count--;
            notifyAll();
            return x;
        }
    }

    static int depth(int n) { return 1 + depth(n + 1); }

    public static void main(String[] args) throws Exception {
        Thread[] ts = new Thread[6];
        for (int i = 0; i < ts.length; i++) {
            ts[i] = new Thread(() -> { for (int k = 0; k < 20000; k++) increment(); });
            ts[i].start();
        }
        for (Thread t : ts) t.join();
        System.out.println("synchronized " + counter);

        Buffer buffer = new Buffer();
        LongAdder sum = new LongAdder();
        Thread[] takers = new Thread[3];
        for (int i = 0; i < 3; i++) {
            takers[i] = new Thread(() -> {
                try {
                    for (int x; (x = buffer.take()) >= 0; ) sum.add(x);
                } catch (InterruptedException e) { throw new RuntimeException(e); }
            });
            takers[i].start();
        }
        for (int i = 0; i < 3000; i++) buffer.put(i);
        for (int i = 0; i < 3; i++) buffer.put(-1);
        for (Thread t : takers) t.join();
        System.out.println("wait and notify " + sum);

        // Garbage, with some of it kept.
        List<byte[]> kept = new ArrayList<>();
        long bytes = 0;
        for (int i = 0; i < 20000; i++) {
            byte[] b = new byte[(i * 37) % 20000];
            bytes += b.length;
            if (i % 50 == 0) kept.add(b);
            if (kept.size() > 100) kept.remove(0);
        }
        System.gc();
        System.out.println("garbage " + bytes + " " + kept.size());

        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> futures = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            final int n = i;
            futures.add(pool.submit(() -> LongStream.rangeClosed(1, 1000 * n).map(x -> x * x % 7).sum()));
        }
        long total = 0;
        for (Future<Long> f : futures) total += f.get();
        pool.shutdown();
        System.out.println("pool " + total + " " + pool.awaitTermination(60, TimeUnit.SECONDS));
        System.out.println("parallel " + IntStream.range(0, 100000).parallel().filter(x -> x % 3 == 0).count());

        ConcurrentHashMap<Integer, Integer> map = new ConcurrentHashMap<>();
        CountDownLatch latch = new CountDownLatch(4);
        for (int i = 0; i < 4; i++) new Thread(() -> {
            for (int k = 0; k < 2000; k++) map.merge(k % 100, 1, Integer::sum);
            latch.countDown();
        }).start();
        latch.await();
        System.out.println("map " + map.size() + " " + map.get(5));

        // Faults that the virtual machine turns into exceptions.
        int caught = 0;
        int[] none = args.length > 5 ? new int[1] : null;
        for (int i = 0; i < 20000; i++) {
            try { caught += none[i]; } catch (NullPointerException e) { caught++; }
        }
        try { depth(0); } catch (StackOverflowError e) { caught++; }
        try { System.out.println(1 / (args.length - args.length)); } catch (ArithmeticException e) { caught++; }
        System.out.println("faults " + caught);

        Thread spinner = new Thread(() -> { while (!stop) Thread.onSpinWait(); });
        spinner.start();
        Thread sleeper = new Thread(() -> {
            try { Thread.sleep(60000); } catch (InterruptedException e) { System.out.println("interrupted"); }
        });
        sleeper.start();
        sleeper.interrupt();
        sleeper.join();
        stop = true;
        spinner.join();

        Process p = new ProcessBuilder("sh", "-c", "cat; exit 5").start();
        p.getOutputStream().write("to a child\n".getBytes());
        p.getOutputStream().close();
        System.out.print(new String(p.getInputStream().readAllBytes()));
        System.out.println("child " + p.waitFor());
        StringBuilder b = new StringBuilder();
        for (int i = 0; i < 300; i++) b.append(String.format("%x,", (long) Math.pow(i, 3) ^ b.toString().hashCode()));
        System.out.println("strings " + b.toString().hashCode());
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
        System.exit(6);
    }
}
