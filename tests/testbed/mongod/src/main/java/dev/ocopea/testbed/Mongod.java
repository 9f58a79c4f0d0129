package dev.ocopea.testbed;

import de.bwaldvogel.mongo.MongoBackend;
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;
import java.util.concurrent.CountDownLatch;

/**
 * A server that speaks MongoDB's wire protocol: Mongod [HOST [PORT [FILE|memory]]]. Nothing comes from the environment: a
 * cluster sets MONGO_PORT to an address in every pod beside a Service of the name mongo.
 */
public final class Mongod {
  public static void main(String[] args) throws Exception {
    String host = argument(args, 0, "0.0.0.0");
    int port = Integer.parseInt(argument(args, 1, "27017"));
    String file = argument(args, 2, "/data/db/mongod.h2");
    MongoBackend backend = file.equals("memory") ? new MemoryBackend() : new TypedH2Backend(file);
    backend.version(new Version6());
    MongoServer server = new MongoServer(backend);
    Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    server.bind(host, port);
    System.out.println("listening on " + host + ":" + port + ", data in " + file);
    new CountDownLatch(1).await();
  }

  private static String argument(String[] args, int place, String usual) {
    return args.length > place ? args[place] : usual;
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
