"""Servers of our own, in a few lines, for what the Go and the Java runtime do behind a program's back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .passenger import PATH, Passenger, content, give
from .servers import downloads, keep_alive, waiting

_GO = """package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"
)

var ticks int64

func file(path string) http.HandlerFunc {
	body, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}
}

func main() {
	folder := filepath.Dir(os.Args[0])
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			atomic.AddInt64(&ticks, 1)
		}
	}()
	go func() { // keep the collector at work
		for {
			_ = make([]byte, 1<<20)
			runtime.Gosched()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	http.HandleFunc("/small", file(folder+"/small"))
	http.HandleFunc("/big", file(folder+"/big"))
	http.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) {
		done := make(chan int64)
		go func() { time.Sleep(50 * time.Millisecond); done <- atomic.LoadInt64(&ticks) }()
		fmt.Fprint(w, <-done)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
"""
_JAVA = """
import com.sun.net.httpserver.*;
import java.io.*;
import java.net.*;
import java.nio.file.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Server {
    static void answer(HttpExchange exchange, byte[] body) throws IOException {
        exchange.sendResponseHeaders(200, body.length);
        try (OutputStream out = exchange.getResponseBody()) { out.write(body); }
    }

    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[0]);
        byte[] small = Files.readAllBytes(folder.resolve("small")), big = Files.readAllBytes(folder.resolve("big"));
        AtomicLong ticks = new AtomicLong();
        ScheduledExecutorService clock = Executors.newScheduledThreadPool(1);
        clock.scheduleAtFixedRate(ticks::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8080), 50);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/small", exchange -> answer(exchange, small));
        server.createContext("/big", exchange -> answer(exchange, big));
        server.createContext("/wait", exchange -> {
            try {
                long seen = clock.schedule(ticks::get, 50, TimeUnit.MILLISECONDS).get();
                answer(exchange, Long.toString(seen).getBytes());
            } catch (InterruptedException | ExecutionException ex) { throw new IOException(ex); }
        });
        server.start();
    }
}
"""
_AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def _files(folder: Path) -> None:
    (folder / "small").write_bytes(content(20_000, 1))
    (folder / "big").write_bytes(content(3_000_000, 2))
    give(folder, "nobody")


def _go(folder: Path) -> Sequence[str]:
    _files(folder)
    (folder / "server.go").write_text(_GO)
    # Of its own library only, and without anything from a network.
    settings = {
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(folder / "go"),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
    }
    build = ["go", "build", "-o", str(folder / "server"), "server.go"]
    subprocess.run(
        build, check=True, cwd=folder, env={**os.environ, "PATH": PATH, "HOME": str(folder), **settings}
    )
    return [*_AS_NOBODY, str(folder / "server")]


def _java(folder: Path) -> Sequence[str]:
    _files(folder)
    (folder / "Server.java").write_text(_JAVA)
    subprocess.run(
        ["javac", "-d", str(folder), str(folder / "Server.java")],
        check=True,
        env={**os.environ, "PATH": PATH},
    )
    return [*_AS_NOBODY, "java", "-Xmx128m", "-cp", str(folder), "Server", str(folder)]


GO = Passenger("go", "golang-go", "go", 8080, _go, (keep_alive, downloads, waiting), is_large=True)
JAVA = Passenger(
    "java",
    "default-jdk-headless",
    "javac",
    8080,
    _java,
    (keep_alive, downloads, waiting),
    leaves=(Path("/tmp/hsperfdata_nobody"),),
    is_large=True,
)
