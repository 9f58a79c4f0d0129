package dev.ocopea.testbed;

import de.bwaldvogel.mongo.MongoBackend;
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;
import java.util.concurrent.CountDownLatch;

/**
 * A server that speaks MongoDB's wire protocol: Mongod [HOST [PORT [FILE|memory]]]. What isn't given comes from MONGO_HOST,
 * MONGO_PORT and MONGO_DATA.
 */
public final class Mongod {
  public static void main(String[] args) throws Exception {
    String host = setting(args, 0, "MONGO_HOST", "0.0.0.0");
    int port = Integer.parseInt(setting(args, 1, "MONGO_PORT", "27017"));
    String file = setting(args, 2, "MONGO_DATA", "/data/db/mongod.h2");
    MongoBackend backend = file.equals("memory") ? new MemoryBackend() : new TypedH2Backend(file);
    backend.version(new Version6());
    MongoServer server = new MongoServer(backend);
    Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    server.bind(host, port);
    System.out.println("listening on " + host + ":" + port + ", data in " + file);
    new CountDownLatch(1).await();
  }

  private static String setting(String[] args, int place, String name, String usual) {
    if (args.length > place) {
      return args[place];
    }
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? usual : value;
  }

  /** Drivers of today want wire version 9 or newer; the library's own newest reports 8. */
  private static final class Version6 implements MongoVersion {
    @Override
    public List<Integer> getVersionArray() {
      return List.of(6, 0, 0);
    }

    @Override
    public int getWireVersion() {
      return 17;
    }
  }
}
